//! What the roles in `deploy/rbac.yaml` and `deploy/cleanup.yaml` allow.

use std::collections::BTreeSet;

use serde::Deserialize;
use wirelane_api_double::{Call, Resource, Verb};

/// What is looked at of a manifest.
#[derive(Deserialize)]
struct Document {
    kind: String,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// Every request is one that the role allows.
pub fn assert_allows(calls: &[Call]) {
    let allowed = allowed(include_str!("../../deploy/rbac.yaml"));
    for call in calls {
        let asked = asked(call);
        assert!(allowed.contains(&asked), "{asked:?} is not in control/deploy/rbac.yaml: {call:?}");
    }
}

fn asked(Call { verb, resource, of_status, .. }: &Call) -> (String, String, String) {
    let status = if *of_status { "/status" } else { "" };
    (resource.group().to_owned(), format!("{}{status}", resource.plural()), verb.as_str().to_owned())
}

/// Group, resource and verb.
fn allowed(text: &str) -> BTreeSet<(String, String, String)> {
    let documents: Vec<Document> = serde_saphyr::from_multiple(text).unwrap();
    let rules =
        documents.into_iter().filter(|document| document.kind == "ClusterRole").flat_map(|role| role.rules);
    let mut allowed = BTreeSet::new();
    for Rule { api_groups, resources, verbs } in rules {
        for group in &api_groups {
            for resource in &resources {
                allowed.extend(verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    allowed
}

/// What is asked by a verb of a resource, or of its status.
fn ask(verb: Verb, resource: Resource, of_status: bool) -> (String, String, String) {
    let [namespace, name, query] = Default::default();
    asked(&Call { verb, resource, of_status, namespace, name, query })
}

#[test]
fn the_role_allows_no_more_than_is_used() {
    let mut used = BTreeSet::new();
    for resource in Resource::ALL.into_iter().filter(|resource| *resource != Resource::Events) {
        used.extend([ask(Verb::List, resource, false), ask(Verb::Watch, resource, false)]);
    }
    for resource in [Resource::Nodes, Resource::Services] {
        used.extend([ask(Verb::Get, resource, false), ask(Verb::Patch, resource, true)]);
    }
    used.extend([ask(Verb::Create, Resource::Events, false), ask(Verb::Patch, Resource::Events, false)]);
    assert_eq!(allowed(include_str!("../../deploy/rbac.yaml")), used);
}

#[test]
fn the_role_of_uninstalling_allows_to_take_the_condition_back() {
    let used = [ask(Verb::Get, Resource::Nodes, false), ask(Verb::Patch, Resource::Nodes, true)];
    assert_eq!(allowed(include_str!("../../deploy/cleanup.yaml")), used.into());
}
