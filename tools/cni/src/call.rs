//! What the runtime says in the environment.

use std::env;

use wirelane_proto::v1::{CniOwner, CniPod};

use crate::result::Error;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// See that all is there.
    Check,
    /// Detach what no runtime knows.
    Gc,
    /// Say whether ADD would have any chance.
    Status,
    /// Say what is spoken.
    Version,
}

/// What it is to be done with.
#[derive(Clone, Debug)]
pub struct Call {
    /// The container, and the name of its interface.
    pub owner: CniOwner,
    /// Path of the container's network namespace; DEL may have none.
    pub netns: String,
    /// The pod, where the runtime is one of Kubernetes.
    pub pod: Option<CniPod>,
}

impl Command {
    /// What `CNI_COMMAND` says.
    pub fn from_environment() -> Result<Self, Error> {
        match &*variable("CNI_COMMAND") {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(Error::environment("CNI_COMMAND", &format!("\"{other}\" is no command"))),
        }
    }

    /// The oldest version of the specification that has it.
    pub const fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.1",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }

    const fn is_about_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

impl Call {
    /// What the environment has for a command, which has to be all that it needs.
    pub fn from_environment(command: Command) -> Result<Self, Error> {
        let call = Self {
            owner: CniOwner { container: variable("CNI_CONTAINERID"), interface: variable("CNI_IFNAME") },
            netns: variable("CNI_NETNS"),
            pod: pod(&variable("CNI_ARGS"))?,
        };
        if !command.is_about_container() {
            return Ok(call);
        }
        let container = &call.owner.container;
        let is_id = container.starts_with(|c: char| c.is_ascii_alphanumeric())
            && container.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !is_id {
            return Err(Error::environment("CNI_CONTAINERID", &format!("\"{container}\" is no id")));
        }
        // linux/if.h, IFNAMSIZ; net/core/dev.c, dev_valid_name().
        let interface = &*call.owner.interface;
        let is_name = (1..16).contains(&interface.len())
            && interface.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
            && ![".", ".."].contains(&interface);
        if !is_name {
            let reason = format!("\"{interface}\" is no name of an interface");
            return Err(Error::environment("CNI_IFNAME", &reason));
        }
        if call.netns.is_empty() && command != Command::Del {
            return Err(Error::environment("CNI_NETNS", "is missing"));
        }
        Ok(call)
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// The pod that `CNI_ARGS` names.
fn pod(args: &str) -> Result<Option<CniPod>, Error> {
    let wrong = |reason: &str| Error::environment("CNI_ARGS", reason);
    let mut values = [""; 3];
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| wrong(&format!("\"{pair}\" is no KEY=VALUE")))?;
        match key {
            "K8S_POD_NAMESPACE" => values[0] = value,
            "K8S_POD_NAME" => values[1] = value,
            "K8S_POD_UID" => values[2] = value,
            // Others are for others.
            _ => {}
        }
    }
    match values {
        ["", "", _] => Ok(None),
        ["", ..] => Err(wrong("there is K8S_POD_NAME without K8S_POD_NAMESPACE")),
        [_, "", _] => Err(wrong("there is K8S_POD_NAMESPACE without K8S_POD_NAME")),
        [namespace, name, uid] => {
            Ok(Some(CniPod { name: format!("{namespace}/{name}"), uid: uid.to_owned() }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_in_the_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;OTHER=a=b";
        let pod_of = |args: &str| pod(args).map_err(|error| error.to_json("1.0.0").to_string());
        assert_eq!(pod_of(args), Ok(Some(CniPod { name: "shop/web-0".into(), uid: "u-1".into() })));
        assert_eq!(pod_of(""), Ok(None));
        assert_eq!(pod_of("IgnoreUnknown=1"), Ok(None));
        assert!(pod_of("K8S_POD_NAME=web-0").unwrap_err().contains("without K8S_POD_NAMESPACE"));
        assert!(pod_of("nonsense").unwrap_err().contains("is no KEY=VALUE"));
    }
}
