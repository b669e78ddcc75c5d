//! Conformance of ClusterNetworkPolicy: rules are asked in the order in which they are written, in either tier and direction,
//! for every protocol.

use wirelane_tests::stage::cluster_policy;

use super::{Case, case, run};

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// A rule about a namespace; at a port of each of these protocols, if there are any.
fn rule(action: &str, direction: &str, ns: &str, protocols: &[&str], port: u16) -> String {
    let peers = if direction == "ingress" { "from" } else { "to" };
    let at =
        |protocol: &&str| format!("{{{}: {{destinationPort: {{number: {port}}}}}}}", protocol.to_lowercase());
    let ports: Vec<String> = protocols.iter().map(at).collect();
    let ports = if ports.is_empty() { String::new() } else { format!(", protocols: [{}]", ports.join(", ")) };
    format!("{{action: {action}, {peers}: [{{namespaces: {{matchLabels: {{ns: {ns}}}}}}}]{ports}}}")
}

/// About `w`, whatever the port, and about `v`, at port 80, are all three actions, in this order; `z` is for port 81 only.
fn rules(order: [&str; 3], direction: &str, protocols: &[&str]) -> String {
    let mut rules: Vec<String> = order.iter().map(|action| rule(action, direction, "w", &[], 0)).collect();
    rules.extend(order.iter().map(|action| rule(action, direction, "v", protocols, 80)));
    rules.push(rule("Accept", direction, "z", protocols, 81));
    rules.push(rule("Deny", direction, "z", &[], 0));
    format!("{direction}: [{}]", rules.join(", "))
}

/// Who reaches whom by these rules, at a port.
fn table(first: &str, direction: &str, port: u16) -> String {
    let mut closed = if port == 80 { vec!["z"] } else { vec![] };
    if first == "Deny" {
        closed.push("w");
        closed.extend((port == 80).then_some("v"));
    }
    let line =
        |ns: &&str| if direction == "ingress" { format!("- {ns} > x\n") } else { format!("- x > {ns}\n") };
    closed.iter().map(line).collect()
}

fn ordered(tier: &str, directions: &[&str], protocols: &[&'static str]) -> Vec<Case> {
    let orders = [["Accept", "Deny", "Pass"], ["Deny", "Accept", "Pass"], ["Pass", "Deny", "Accept"]];
    let orders = orders.into_iter().map(|order| {
        let sections: Vec<String> =
            directions.iter().map(|direction| rules(order, direction, protocols)).collect();
        let spec = format!("subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, {}", sections.join(", "));
        let mut case = case(format!(
            "{tier}, {}, {}: {} comes first",
            directions.join(" and "),
            protocols.join(", "),
            order[0]
        ))
        .told(cluster_policy("ordered", tier, 10, &spec));
        for protocol in protocols {
            for port in [80, 81] {
                let tables = directions.iter().map(|direction| table(order[0], direction, port));
                case = case.reach(protocol, port, tables.collect::<String>());
            }
        }
        case
    });
    orders.collect()
}

/// Each direction and protocol alone.
fn alone(tier: &str) -> Vec<Case> {
    let directions = ["ingress", "egress"].into_iter();
    let both = directions.flat_map(|direction| PROTOCOLS.map(|protocol| (direction, protocol)));
    both.flat_map(|(direction, protocol)| ordered(tier, &[direction], &[protocol])).collect()
}

#[test]
fn admin() {
    run(&alone("Admin"));
}

#[test]
fn baseline() {
    run(&alone("Baseline"));
}

#[test]
fn both_directions_and_all_protocols_in_one() {
    run(&ordered("Admin", &["ingress", "egress"], &PROTOCOLS));
    run(&ordered("Baseline", &["ingress", "egress"], &PROTOCOLS));
}
