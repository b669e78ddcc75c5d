//! Longest prefix and policy against models that are slow and obvious.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::objects::{IpBlock, Object, ObjectKey, Policy, PortRange, Rule};
use wirelane_dataplane::tables::policy::{Direction, Judgement, Peer, rule_name};
use wirelane_dataplane::tables::route::{Route, Routes};
use wirelane_dataplane::wire::Addr;

/// Addresses of both families out of few, so that prefixes nest and hit.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..4, 0u8..4).prop_map(|(a, b)| IpAddr::from([10, a << 6, b, 1])),
        (0u8..4, 0u8..4).prop_map(|(a, b)| {
            let mut bytes = [0; 16];
            (bytes[0], bytes[1], bytes[7], bytes[15]) = (0xfd, a << 6, b, 1);
            IpAddr::from(bytes)
        }),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    (address(), 0u8..=128).prop_map(|(address, len)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, len.min(most)).unwrap().trunc()
    })
}

proptest! {
    #[test]
    fn longest_prefix_is_the_one_that_a_search_through_all_finds(
        prefixes in prop::collection::vec(prefix(), 0..30),
        addresses in prop::collection::vec(address(), 1..20),
    ) {
        let mut routes = Routes::default();
        for (n, prefix) in prefixes.iter().enumerate() {
            routes.insert(*prefix, Route::Tunnel(n as u16));
        }
        for address in addresses {
            let mut best = None;
            for (n, prefix) in prefixes.iter().enumerate() {
                if prefix.contains(&address) && best.is_none_or(|(len, _)| len <= prefix.prefix_len()) {
                    best = Some((prefix.prefix_len(), Route::Tunnel(n as u16)));
                }
            }
            prop_assert_eq!(routes.lookup(&Addr::from(address)), best.map(|(_, route)| route));
        }
    }
}

const PROTOCOLS: [u8; 4] = [6, 17, 132, 1];

fn few<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(of, 0..3)
}

fn rule() -> impl Strategy<Value = Rule> {
    let block = (prefix(), few(prefix())).prop_map(|(cidr, except)| IpBlock { cidr, except });
    let ports = (0..4usize, 0u16..6, 0u16..6).prop_map(|(protocol, first, more)| PortRange {
        proto: PROTOCOLS[protocol],
        first,
        last: first + more,
    });
    (0u32..4, few(1u32..5), prop::bool::weighted(0.2), few(0u32..5), few(block), few(ports)).prop_map(
        |(index, subjects, any_peer, peer_identities, peer_blocks, ports)| Rule {
            index,
            subjects,
            any_peer,
            peer_identities,
            peer_blocks,
            ports,
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    (0u8..20, few(1u32..5), any::<[bool; 2]>(), few(rule()), few(rule())).prop_map(
        |(name, subjects, [isolates_ingress, isolates_egress], ingress, egress)| Policy {
            name: format!("ns/{name}"),
            subjects,
            isolates_ingress,
            isolates_egress,
            ingress,
            egress,
        },
    )
}

/// NetworkPolicy v1 as its documentation says it: isolated if any policy selects the pod for the direction; then
/// allowed is what any rule of any such policy allows; everything else is denied. Gives the rules that allow, in
/// the order in which they are asked.
fn naive(policies: &[&Policy], direction: Direction, subject: u32, peer: &Peer) -> (bool, Vec<String>) {
    let mut isolated = false;
    let mut allowed_by = Vec::new();
    for policy in policies {
        let (isolates, rules) = match direction {
            Direction::Ingress => (policy.isolates_ingress, &policy.ingress),
            Direction::Egress => (policy.isolates_egress, &policy.egress),
        };
        if !isolates || !policy.subjects.contains(&subject) {
            continue;
        }
        isolated = true;
        for rule in rules {
            let for_subject = rule.subjects.is_empty() || rule.subjects.contains(&subject);
            // Identity 0 is "outside the cluster": no set of labels.
            let by_identity = peer.identity != 0 && rule.peer_identities.contains(&peer.identity);
            let address = IpAddr::from(peer.address);
            let mut by_block = false;
            for block in &rule.peer_blocks {
                let hole = block.except.iter().any(|hole| hole.contains(&address));
                by_block |= block.cidr.contains(&address) && !hole;
            }
            let mut by_port = rule.ports.is_empty();
            for range in &rule.ports {
                by_port |= range.proto == peer.proto && range.first <= peer.port && peer.port <= range.last;
            }
            if for_subject && by_port && (rule.any_peer || by_identity || by_block) {
                allowed_by.push(rule_name(&policy.name, direction, rule.index));
            }
        }
    }
    (isolated, allowed_by)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Policies come, change and go; after each transaction a connection is judged as a search through the rules
    /// that hold then judges it, and the first rule of that search is named.
    #[test]
    fn policies_judge_as_their_documentation_says(
        transactions in prop::collection::vec((few(policy()), few(0u8..20)), 1..5),
        connections in prop::collection::vec((1u32..5, 0u32..5, address(), 0..4usize, 0u16..8), 1..20),
    ) {
        let mut builder = Builder::default();
        for (upserts, deletes) in transactions {
            let deletes: Vec<_> = deletes.iter().map(|n| ObjectKey::Policy(format!("ns/{n}"))).collect();
            builder.change(upserts.into_iter().map(Object::Policy).collect(), &deletes);
            let tables = builder.build(&Neighbours::default());
            let policies: Vec<&Policy> = builder.objects().filter_map(Object::policy).collect();
            for (subject, identity, address, protocol, port) in &connections {
                let (address, proto) = (Addr::from(*address), PROTOCOLS[*protocol]);
                let peer = Peer { identity: *identity, address, proto, port: *port };
                for direction in Direction::ALL {
                    let (isolated, allowed_by) = naive(&policies, direction, *subject, &peer);
                    match tables.policies.judge(direction, *subject, &peer) {
                        Judgement::NotIsolated => prop_assert!(!isolated),
                        Judgement::Denied => prop_assert!(isolated && allowed_by.is_empty(), "{allowed_by:?}"),
                        Judgement::Allowed(rule) => {
                            let name = builder.names().name(rule);
                            prop_assert_eq!(name, allowed_by.first().map(String::as_str));
                        }
                    }
                    prop_assert_eq!(!tables.policies.isolating(direction, *subject).is_empty(), isolated);
                }
            }
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Blocks that overlap so much that they are taken apart.
    #[test]
    fn blocks_with_many_holes_are_judged_as_a_search_judges_them(
        holes in prop::collection::vec((any::<u8>(), 0u16..8), 200..400),
        asked in prop::collection::vec((any::<u8>(), 0u16..8), 200),
    ) {
        let rule = |(n, (hole, port)): (usize, &(u8, u16))| Rule {
            index: n as u32,
            subjects: Vec::new(),
            any_peer: false,
            peer_identities: Vec::new(),
            peer_blocks: vec![IpBlock {
                cidr: "10.0.0.0/8".parse().unwrap(),
                except: vec![IpNet::new(IpAddr::from([10, *hole, 0, 0]), 16).unwrap()],
            }],
            ports: vec![PortRange { proto: 6, first: *port, last: *port }],
        };
        let policy = Policy {
            name: "ns/holes".into(),
            subjects: vec![1],
            isolates_ingress: true,
            isolates_egress: false,
            ingress: holes.iter().enumerate().map(rule).collect(),
            egress: Vec::new(),
        };
        let mut builder = Builder::default();
        builder.change(vec![Object::Policy(policy.clone())], &[]);
        let tables = builder.build(&Neighbours::default());
        for (block, port) in asked {
            let peer = Peer { identity: 0, address: Addr::v4([10, block, 1, 1]), proto: 6, port };
            let (_, allowed_by) = naive(&[&policy], Direction::Ingress, 1, &peer);
            let rule = tables.policies.judge(Direction::Ingress, 1, &peer).rule();
            prop_assert_eq!(builder.names().name(rule), allowed_by.first().map(String::as_str));
        }
    }
}
