//! What the role in `deploy/rbac.yaml` allows.

use std::collections::BTreeSet;

use serde::Deserialize;
use wirelane_api_double::{Call, Resource, Verb};

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
    let allowed = allowed();
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
fn allowed() -> BTreeSet<(String, String, String)> {
    let text = include_str!("../../deploy/rbac.yaml");
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

#[test]
fn the_role_allows_no_more_than_is_used() {
    let call = |verb, resource, of_status| {
        asked(&Call {
            verb,
            resource,
            of_status,
            namespace: String::new(),
            name: String::new(),
            query: String::new(),
        })
    };
    let mut used = BTreeSet::new();
    for resource in Resource::ALL.into_iter().filter(|resource| *resource != Resource::Events) {
        used.extend([call(Verb::List, resource, false), call(Verb::Watch, resource, false)]);
    }
    for resource in [Resource::Nodes, Resource::Services] {
        used.extend([call(Verb::Get, resource, false), call(Verb::Patch, resource, true)]);
    }
    used.extend([call(Verb::Create, Resource::Events, false), call(Verb::Patch, Resource::Events, false)]);
    assert_eq!(allowed(), used);
}
