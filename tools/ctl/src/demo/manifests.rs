//! The demo's manifests: copies in the lab's folder, which the demo may change.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Name and text of each file.
const FILES: [(&str, &str); 6] = [
    ("cluster.yaml", include_str!("../../demo/cluster.yaml")),
    ("endpoints.yaml", include_str!("../../demo/endpoints.yaml")),
    (WEB, include_str!("../../demo/endpoints-web.yaml")),
    ("pods.yaml", include_str!("../../demo/pods.yaml")),
    ("policy.yaml", include_str!("../../demo/policy.yaml")),
    ("services.yaml", include_str!("../../demo/services.yaml")),
];

/// The EndpointSlices of the Service `web`.
const WEB: &str = "endpoints-web.yaml";

/// A folder with the manifests in it.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// Writes them all into a new folder.
    pub fn write(folder: PathBuf) -> io::Result<Manifests> {
        fs::create_dir(&folder)?;
        let manifests = Manifests { folder };
        for (name, text) in FILES {
            manifests.replace(name, text)?;
        }
        Ok(manifests)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes a pod out of the EndpointSlices of `web`.
    pub fn remove_from_web(&self, pod: &str) -> io::Result<()> {
        let (_, text) = FILES.iter().find(|(name, _)| *name == WEB).expect("it is one of the files");
        self.replace(WEB, &without_endpoint(text, pod))
    }

    /// Puts all pods back into the EndpointSlices of `web`.
    pub fn restore_web(&self) -> io::Result<()> {
        let (_, text) = FILES.iter().find(|(name, _)| *name == WEB).expect("it is one of the files");
        self.replace(WEB, text)
    }

    /// Replaces a file in one step, as editors do, so that nobody reads half of it.
    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let new = self.folder.join(format!(".{name}.new"));
        fs::write(&new, text)?;
        fs::rename(new, self.folder.join(name))
    }
}

/// The text without the endpoints that are of this pod. An endpoint begins with a `- addresses:` and lasts as long as
/// the lines are indented deeper than that.
fn without_endpoint(text: &str, pod: &str) -> String {
    const FIRST: &str = "  - addresses:";
    const FURTHER: &str = "    ";
    let mut kept = String::new();
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let mut item = line.to_owned();
        if line.starts_with(FIRST) {
            while let Some(further) = lines.next_if(|line| line.starts_with(FURTHER)) {
                item.push_str(further);
            }
            if item.contains(&format!("name: {pod}}}")) {
                continue;
            }
        }
        kept.push_str(&item);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_pod_is_gone_from_both_families_and_the_others_are_not() {
        let (_, text) = FILES.iter().find(|(name, _)| *name == WEB).unwrap();
        let without = without_endpoint(text, "web-2");
        assert!(!without.contains("web-2}") && !without.contains("10.244.1.12") && !without.contains("::12"));
        for kept in ["name: web-1}", "name: web-3}", "- addresses:", "kind: EndpointSlice"] {
            let removed = usize::from(kept == "- addresses:") * 2;
            assert_eq!(without.matches(kept).count(), text.matches(kept).count() - removed, "{kept}");
        }
    }
}
