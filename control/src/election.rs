//! One node out of all, on which every node agrees without asking.

use crate::{hash::StableHash, model::Node};

/// Of these nodes those that are Ready and stay. Where none is, it is rather who says so that is not: then all of them.
pub(crate) fn fit<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<&'a Node> {
    let mut nodes: Vec<_> = nodes.collect();
    let is_fit = |node: &&Node| node.is_ready && !node.is_leaving;
    if nodes.iter().any(is_fit) {
        nodes.retain(is_fit);
    }
    nodes
}

/// The node that something falls to: the one with the highest hash of both, so that the loss of a node moves only what fell
/// to it (rendezvous hashing).
pub(crate) fn elect<'a>(what: &[u8], nodes: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nodes.max_by_key(|node| (StableHash::new().part(what).part(node.as_bytes()).finish(), *node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_a_node_moves_only_what_fell_to_it() {
        let nodes = ["n0", "n1", "n2", "n3"];
        let all = |lost: Option<&str>| {
            let nodes: Vec<_> = nodes.into_iter().filter(|node| Some(*node) != lost).collect();
            let elected = (0..1000_u16).map(|i| {
                let [high, low] = i.to_be_bytes();
                elect(&[192, 0, high, low], nodes.iter().copied()).unwrap()
            });
            elected.collect::<Vec<_>>()
        };
        let before = all(None);
        for node in nodes {
            let held = before.iter().filter(|elected| **elected == node).count();
            assert!((150..350).contains(&held), "{node} has {held} of 1000");
            let after = all(Some(node));
            assert!(before.iter().zip(&after).all(|(before, after)| *before == node || before == after));
        }
        // Nodes of different versions must agree: this one must never change.
        assert_eq!(elect(&[192, 0, 2, 1], nodes.into_iter()), Some(PINNED));
        assert_eq!(elect(&[192, 0, 2, 1], std::iter::empty()), None);
    }

    const PINNED: &str = "n3";
}
