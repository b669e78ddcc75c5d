//! Which pods a policy is about, or the other end of its rules.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use super::{Labels, Selector, cluster::NAMESPACE_NAME};

/// Pods chosen by labels, in namespaces chosen by name or by labels. Pods in their node's network never are.
#[derive(Clone, Debug)]
pub struct Selection {
    name: String,
    namespaces: NamespaceScope,
    pods: Selector,
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceScope {
    /// The one of this name.
    One(String),
    /// All that have such labels.
    Selected(Selector),
}

impl Selection {
    /// The pods that `pods` chooses in these namespaces.
    pub fn new(namespaces: NamespaceScope, pods: Selector) -> Self {
        // The API server gives every namespace its name as a label, so these are two ways to say one thing.
        let namespaces = match namespaces {
            NamespaceScope::Selected(selector) => match selector.sole_value(NAMESPACE_NAME) {
                Some(name) => NamespaceScope::One(name.to_owned()),
                None => NamespaceScope::Selected(selector),
            },
            one @ NamespaceScope::One(_) => one,
        };
        Self { name: words(&namespaces, &pods), namespaces, pods }
    }

    /// All pods of all namespaces.
    pub fn everything() -> Self {
        Self::new(NamespaceScope::Selected(Selector::EVERYTHING), Selector::EVERYTHING)
    }

    /// What it is in words, such as "pods app=web of namespace x": no two that choose differently have the same.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose pods.
    pub fn namespaces(&self) -> &NamespaceScope {
        &self.namespaces
    }

    /// Which of their pods.
    pub fn pods(&self) -> &Selector {
        &self.pods
    }

    /// Whether a pod with these labels is chosen, in a namespace with this name and these labels.
    pub fn matches(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        let is_scope = match &self.namespaces {
            NamespaceScope::One(name) => name == namespace,
            NamespaceScope::Selected(selector) => selector.matches(namespace_labels),
        };
        is_scope && self.pods.matches(labels)
    }
}

impl PartialEq for Selection {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Selection {}

impl Hash for Selection {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl fmt::Display for NamespaceScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(name) => write!(f, "namespace {name}"),
            Self::Selected(selector) if selector.is_everything() => f.write_str("all namespaces"),
            Self::Selected(selector) => write!(f, "namespaces {selector}"),
        }
    }
}

fn words(namespaces: &NamespaceScope, pods: &Selector) -> String {
    if pods.is_everything() {
        format!("all pods of {namespaces}")
    } else {
        format!("pods {pods} of {namespaces}")
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use serde_json::{Value, json};

    use super::*;

    fn selector(text: &Value) -> Selector {
        let selector: LabelSelector = serde_json::from_value(text.clone()).unwrap();
        Selector::parse("", &selector).unwrap()
    }

    #[test]
    fn what_means_the_same_is_called_the_same() {
        let own = |pods| Selection::new(NamespaceScope::One("x".into()), selector(&pods)).name().to_owned();
        let all = |namespaces, pods| {
            Selection::new(NamespaceScope::Selected(selector(&namespaces)), selector(&pods)).name().to_owned()
        };
        assert_eq!(own(json!({})), "all pods of namespace x");
        assert_eq!(own(json!({ "matchLabels": { "app": "web" } })), "pods app=web of namespace x");
        assert_eq!(
            all(json!({ "matchLabels": { "kubernetes.io/metadata.name": "x" } }), json!({})),
            "all pods of namespace x"
        );
        let expressions = json!([
            { "key": "tier", "operator": "NotIn", "values": ["b", "a", "b"] },
            { "key": "app", "operator": "In", "values": ["web"] },
            { "key": "old", "operator": "DoesNotExist" },
            { "key": "app", "operator": "Exists" },
            { "key": "team", "operator": "NotIn", "values": [""] },
        ]);
        assert_eq!(
            own(json!({ "matchExpressions": expressions, "matchLabels": { "app": "web" } })),
            "pods app=web,app,!old,team!=,tier notin (a,b) of namespace x"
        );
        assert_eq!(
            all(json!({ "matchExpressions": [{ "key": "x", "operator": "Exists" }] }), json!({})),
            "all pods of namespaces x"
        );
        assert_eq!(Selection::everything().name(), "all pods of all namespaces");
    }
}
