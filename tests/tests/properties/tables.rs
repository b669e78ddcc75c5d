//! Longest prefix and policy against models that are slow and obvious.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::objects::{IpBlock, Object, Policy, PortRange, Rule, Selection};
use wirelane_dataplane::tables::policy::{Direction, Peer, rule_name};
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Blocks that overlap so much that they are taken apart. (All else about policies is in `verdicts`.)
    #[test]
    fn blocks_with_many_holes_are_judged_as_a_search_judges_them(
        holes in prop::collection::vec((any::<u8>(), 0u16..8), 200..400),
        asked in prop::collection::vec((any::<u8>(), 0u16..8), 200),
    ) {
        let hole = |n: u8| IpNet::new(IpAddr::from([10, n, 0, 0]), 16).unwrap();
        let rule = |(index, (n, port)): (u32, &(u8, u16))| Rule {
            index,
            peer_blocks: vec![IpBlock { cidr: "10.0.0.0/8".parse().unwrap(), except: vec![hole(*n)] }],
            ports: vec![PortRange { proto: 6, first: *port, last: *port }],
            ..Rule::default()
        };
        let policy = Policy {
            name: "ns/holes".into(),
            subjects: vec!["one".into()],
            isolates_ingress: true,
            ingress: (0..).zip(&holes).map(rule).collect(),
            ..Policy::default()
        };
        let one = Selection { name: "one".into(), identities: vec![1] };
        let mut builder = Builder::default();
        builder.change(vec![Object::Selection(one), Object::Policy(policy.clone())], &[]);
        builder.build(&Neighbours::default());
        for (block, port) in asked {
            let peer = Peer { identity: 0, address: Addr::v4([10, block, 1, 1]), proto: 6, port };
            let first = holes.iter().position(|(hole, open)| *hole != block && *open == port);
            let expected = first.map(|n| rule_name(&policy, Direction::Ingress, &policy.ingress[n]));
            let rule = builder.judge(Direction::Ingress, 1, &peer).judgement.rule();
            prop_assert_eq!(builder.names().name(rule), expected.as_deref());
        }
    }
}
