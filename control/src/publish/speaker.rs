//! Who speaks of an object, of all the nodes that find the same fault with it.

use crate::{
    election::{elect, fit},
    model::{Key, Kind},
    state::State,
};

/// Whether this node is the one. Of a pod it is the node that it is on; of a Service the `allocator`, which alone knows of
/// addresses, where there is one; else the node with the highest hash of both among those that are Ready and stay, so that every
/// node comes to the same without asking.
pub(crate) fn speaks(state: &State, node: &str, allocator: Option<&str>, key: &Key) -> bool {
    if key.kind == Kind::Pod
        && let Some(pod) = state.pod(&key.name)
        && !pod.object.node.is_empty()
    {
        return pod.object.node == node;
    }
    if key.kind == Kind::Service
        && let Some(allocator) = allocator
        && state.node(allocator).is_some()
    {
        return allocator == node;
    }
    let may = fit(state.nodes().map(|stored| &*stored.object)).into_iter();
    let elected = elect(key.to_string().as_bytes(), may.map(|node| &*node.name.name));
    elected == Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Name,
        source::manifest::{self, Format, Reading},
        state::Touched,
    };

    #[test]
    fn exactly_one_node_speaks_of_each_object() {
        let mut text = String::new();
        for (node, ready) in [("n0", "True"), ("n1", "True"), ("n2", "True"), ("n3", "False")] {
            text += &format!(
                "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}, \
                 status: {{conditions: [{{type: Ready, status: \"{ready}\"}}]}}}}\n"
            );
        }
        text += "---\n{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: x}, \
                 spec: {nodeName: n3, containers: [{name: c}]}}\n";
        let mut state = State::default();
        for reading in manifest::read(&text, Format::Yaml) {
            let Reading::Valid(object) = reading else { panic!("{reading:?}") };
            state.upsert(object, "test".into(), &mut Touched::default());
        }
        let speakers = |allocator, kind, name: &str| {
            let key = Key { kind, name: Name::new("x", name) };
            let nodes = ["n0", "n1", "n2", "n3"].into_iter();
            nodes.filter(|node| speaks(&state, node, allocator, &key)).collect::<Vec<_>>()
        };
        let of_policies: Vec<_> =
            (0..300).map(|i| speakers(None, Kind::NetworkPolicy, &format!("p{i}"))).collect();
        for node in ["n0", "n1", "n2"] {
            let count = of_policies.iter().filter(|speakers| **speakers == [node]).count();
            assert!((50..150).contains(&count), "{node} speaks of {count} of 300");
        }
        assert!(of_policies.iter().all(|speakers| speakers.len() == 1 && speakers != &["n3"]));
        assert_eq!(speakers(None, Kind::Pod, "p"), ["n3"], "it knows best");
        assert_eq!(speakers(None, Kind::Pod, "unknown").len(), 1);
        assert_eq!(speakers(Some("n1"), Kind::Service, "web"), ["n1"]);
        assert_eq!(speakers(Some("gone"), Kind::Service, "web").len(), 1);
    }
}
