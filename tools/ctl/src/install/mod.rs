//! `wirelane install`: what a cluster needs to run on Wirelane, printed for `kubectl apply`, or written as a kustomize base.
//!
//! The manifests are those of `control/deploy/`, with the image, and the daemons' configuration, as asked for.

pub mod node;

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result};
use clap::Args;
use wirelane_control::config::Config as ControlConfig;
use wirelane_dataplane::config::Config as DataplaneConfig;

/// What `wirelane install` is told.
#[derive(Debug, Args)]
pub struct Install {
    /// The image with Wirelane's programs, as the nodes know it (`tools/image.sh` makes one).
    #[arg(long, default_value = IMAGE)]
    image: String,
    /// A key of the control process's configuration, as in its file: 'service_cidrs=["10.0.0.0/16"]'. Again for each.
    #[arg(long, value_name = "KEY=VALUE")]
    control: Vec<Setting>,
    /// A key of the dataplane's configuration, as in its file: 'uplink="ens3"'. Again for each.
    #[arg(long, value_name = "KEY=VALUE")]
    dataplane: Vec<Setting>,
    /// Write a kustomize base into this folder, instead of printing.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print instead what cleans the nodes up, to be applied once everything else has been deleted.
    #[arg(long, conflicts_with = "out")]
    cleanup: bool,
}

/// A key of a configuration with its value.
#[derive(Clone, Debug)]
struct Setting {
    /// "masquerade.ports" as its parts.
    key: Vec<String>,
    value: toml::Value,
}

/// What the manifests say unless told otherwise.
const IMAGE: &str = concat!("localhost/wirelane:", env!("CARGO_PKG_VERSION"));

/// What the dataplane asks for in `dataplane.yaml`: a core for each worker.
const CORES: &str = "cpu: \"2\"\n";

const KUSTOMIZATION: (&str, &str) =
    ("kustomization.yaml", include_str!("../../../../control/deploy/kustomization.yaml"));
/// In the order in which they are applied; the configuration comes after the first.
const MANIFESTS: [(&str, &str); 4] = [
    ("namespace.yaml", include_str!("../../../../control/deploy/namespace.yaml")),
    ("rbac.yaml", include_str!("../../../../control/deploy/rbac.yaml")),
    ("dataplane.yaml", include_str!("../../../../control/deploy/dataplane.yaml")),
    ("control.yaml", include_str!("../../../../control/deploy/control.yaml")),
];
const CLEANUP: (&str, &str) = ("cleanup.yaml", include_str!("../../../../control/deploy/cleanup.yaml"));
const CONTROL: (&str, &str) =
    ("control.toml", include_str!("../../../../control/deploy/config/control.toml"));
const DATAPLANE: (&str, &str) =
    ("dataplane.toml", include_str!("../../../../control/deploy/config/dataplane.toml"));

/// The answer: what to print.
pub fn run(install: &Install) -> Result<String> {
    let with_image =
        |text: &str| text.replace(&format!("image: {IMAGE}\n"), &format!("image: {}\n", install.image));
    let control = configured(CONTROL, &install.control)?;
    // As the daemons will read them: what they refuse is refused here.
    ControlConfig::parse(Path::new(CONTROL.0), &control)?;
    let dataplane = configured(DATAPLANE, &install.dataplane)?;
    let workers = DataplaneConfig::parse(Path::new(DATAPLANE.0), &dataplane)?.workers;
    let manifests = MANIFESTS
        .map(|(name, text)| (name, with_image(text).replace(CORES, &format!("cpu: \"{workers}\"\n"))));

    let Some(folder) = &install.out else {
        let map = config_map(&[(CONTROL.0, &control), (DATAPLANE.0, &dataplane)]);
        let [namespace, others @ ..] = manifests.map(|(_, text)| text);
        let others = if install.cleanup { vec![with_image(CLEANUP.1)] } else { others.into() };
        let all: Vec<String> = [namespace, map].into_iter().chain(others).collect();
        return Ok(all.join("---\n"));
    };
    let config = folder.join("config");
    fs::create_dir_all(&config).with_context(|| config.display().to_string())?;
    let write =
        |path: PathBuf, text: &str| fs::write(&path, text).with_context(|| path.display().to_string());
    for (name, text) in &manifests {
        write(folder.join(name), text)?;
    }
    write(folder.join(KUSTOMIZATION.0), KUSTOMIZATION.1)?;
    write(folder.join(CLEANUP.0), &with_image(CLEANUP.1))?;
    write(config.join(CONTROL.0), &control)?;
    write(config.join(DATAPLANE.0), &dataplane)?;
    Ok(format!("written to {}: kubectl apply -k {}\n", folder.display(), folder.display()))
}

/// A configuration with other values. Without any it is as it was, comments and all.
fn configured((name, text): (&str, &str), settings: &[Setting]) -> Result<String> {
    if settings.is_empty() {
        return Ok(text.to_owned());
    }
    let mut table: toml::Table = text.parse().with_context(|| name.to_owned())?;
    for Setting { key, value } in settings {
        let (last, tables) = key.split_last().expect("a key has a part");
        let mut at = &mut table;
        for part in tables {
            let inner = at.entry(part).or_insert_with(|| toml::Table::new().into());
            at = inner.as_table_mut().with_context(|| format!("{name}: {part} is no table"))?;
        }
        at.insert(last.clone(), value.clone());
    }
    Ok(toml::to_string(&table)?)
}

/// Files as a ConfigMap that a volume makes files of again.
fn config_map(files: &[(&str, &str)]) -> String {
    let mut text =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: wirelane\n  namespace: wirelane\ndata:\n"
            .to_owned();
    for (name, content) in files {
        text += &format!("  {name}: |\n");
        for line in content.lines() {
            text += &if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") };
        }
    }
    text
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("is not KEY=VALUE")?;
        let key: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if key.iter().any(String::is_empty) {
            return Err("has no key before \"=\"".to_owned());
        }
        // As the value of a key of TOML; what is none is a text without its quotes.
        let table: Result<toml::Table, _> = format!("value = {value}").parse();
        let value = match table {
            Ok(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(|| value.into()),
            _ => value.into(),
        };
        Ok(Self { key, value })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        install: Install,
    }

    fn install(arguments: &[&str]) -> Result<String> {
        run(&Arguments::try_parse_from([&["install"], arguments].concat())?.install)
    }

    /// The kinds of what is printed.
    fn kinds(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect()
    }

    #[test]
    fn what_is_printed_is_what_the_base_has() {
        let text = install(&[]).unwrap();
        assert_eq!(kinds(&text)[..2], ["Namespace", "ConfigMap"]);
        assert_eq!(kinds(&text).iter().filter(|kind| **kind == "DaemonSet").count(), 2);
        let folder = tempfile::tempdir().unwrap();
        install(&["--out", folder.path().to_str().unwrap()]).unwrap();
        let kustomization = fs::read_to_string(folder.path().join(KUSTOMIZATION.0)).unwrap();
        let files = kustomization.lines().filter_map(|line| line.trim().strip_prefix("- "));
        for file in files.filter(|file| file.ends_with(".yaml") || file.ends_with(".toml")) {
            assert!(folder.path().join(file).is_file(), "{file} is named, and not there");
        }
    }

    #[test]
    fn image_and_settings_are_as_asked_for() {
        let arguments = [
            "--image",
            "registry.example/wirelane:2",
            "--dataplane",
            "uplink=ens3",
            "--dataplane",
            "workers=4",
        ];
        let text = install(&[&arguments[..], &["--control", "masquerade.except=[\"10.0.0.0/8\"]"]].concat())
            .unwrap();
        assert!(!text.contains(&format!("image: {IMAGE}")));
        assert_eq!(text.matches("image: registry.example/wirelane:2\n").count(), 3);
        assert!(text.contains("            requests:\n              cpu: \"4\"\n"), "a core for each worker");
        for line in
            ["    uplink = \"ens3\"", "    workers = 4", "    [masquerade]", "    except = [\"10.0.0.0/8\"]"]
        {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in {text}");
        }
        let cleanup = install(&["--cleanup", "--image", "registry.example/wirelane:2"]).unwrap();
        assert_eq!(
            kinds(&cleanup),
            ["Namespace", "ConfigMap", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"]
        );
        assert!(!cleanup.contains(IMAGE));
    }

    #[test]
    fn what_the_daemons_would_refuse_is_refused() {
        for (arguments, said) in [
            (["--dataplane", "workers=0"], "workers"),
            (["--dataplane", "speed=9"], "speed"),
            (["--control", "vni=99999999"], "vni"),
            (["--control", "healthz.port=1"], "healthz"),
        ] {
            let error = install(&arguments).unwrap_err();
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }
}
