//! `wirelane whatif`: what a change of the cluster's objects would do to connections.

mod capture;
mod offline;

use std::{fs, io::Read, path::PathBuf};

use anyhow::{Context, Result};
use wirelane::Daemons;
use wirelane_control::proposal::Proposal;
use wirelane_proto::v1::{Document, ProposeRequest, ProposeResponse};

/// What would change, and where to look.
#[derive(Debug, clap::Args)]
pub struct WhatIf {
    /// Manifests that would be applied ("-": from standard input).
    #[arg(value_name = "FILE", required_unless_present = "delete")]
    files: Vec<PathBuf>,
    /// An object that would go: KIND/NAMESPACE/NAME, such as networkpolicy/shop/db, or KIND/NAME.
    #[arg(long, value_name = "OBJECT")]
    delete: Vec<String>,
    /// Look at the connections that begin in this capture (pcap or pcapng), and ask no daemon.
    #[arg(long, value_name = "FILE", requires = "manifests")]
    capture: Option<PathBuf>,
    /// With --capture: the folder of the cluster's manifests.
    #[arg(long, value_name = "DIR", requires = "capture")]
    manifests: Option<PathBuf>,
    /// With --capture: the node whose tables are asked; otherwise that of --config.
    #[arg(long, requires = "capture")]
    node: Option<String>,
    /// With --capture: the control process' configuration, where it is not the usual one.
    #[arg(long, value_name = "FILE", requires = "capture")]
    config: Option<PathBuf>,
}

impl WhatIf {
    /// Asks the node's daemons, or works it out here.
    ///
    /// # Errors
    /// When a file cannot be read, or nobody answers.
    pub fn ask(&self, daemons: &Daemons) -> Result<ProposeResponse> {
        let documents = self.documents()?;
        let (Some(capture), Some(manifests)) = (&self.capture, &self.manifests) else {
            let documents = documents.into_iter().map(|(file, text)| Document { file, text }).collect();
            return Ok(daemons.propose(ProposeRequest { documents, deletes: self.delete.clone() })?);
        };
        let proposal = Proposal::new(documents, &self.delete).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let settings = offline::settings(self.config.as_deref(), self.node.as_deref())?;
        offline::what_if(proposal, capture, manifests, settings)
    }

    /// Names and texts of the manifests.
    fn documents(&self) -> Result<Vec<(String, String)>> {
        let read = |file: &PathBuf| {
            let mut text = String::new();
            if file.as_os_str() == "-" {
                std::io::stdin().read_to_string(&mut text).context("standard input")?;
            } else {
                text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            }
            anyhow::Ok((file.display().to_string(), text))
        };
        self.files.iter().map(read).collect()
    }
}
