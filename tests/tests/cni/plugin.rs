//! Each operation of the specification, in each version.

use std::net::SocketAddr;

use serde_json::{Value, json};
use wirelane_tests::privileged;

use crate::node::{Node, PATIENCE, SERVED, SILENCE, ask, pod_args, pod_manifest, start_server};

#[test]
fn a_container_comes_and_goes_in_every_version() {
    if !privileged() {
        return;
    }
    let node = Node::new("");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let name = format!("c{}", version.replace('.', ""));
        let netns = node.lab.namespace(&name).unwrap();
        let mut call = node.about(&name, &netns);
        call.config = node.config(version);
        call.config["dns"] = json!({ "nameservers": ["10.96.0.10"] });
        let added = node.call("ADD", &call);
        let result = added.result();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
        let [host, container] = &result["interfaces"].as_array().unwrap()[..] else { panic!("{result}") };
        assert!(node.links().contains(&host["name"].as_str().unwrap().to_owned()));
        assert_eq!((&container["name"], &container["sandbox"]), (&json!("eth0"), &json!(call.netns)));
        let link = netns.ip("link show eth0").unwrap();
        assert!(link.contains(container["mac"].as_str().unwrap()), "{link}");
        let addresses = added.addresses();
        assert_eq!(addresses.iter().map(|address| address.is_ipv4()).collect::<Vec<_>>(), [true, false]);
        for ip in result["ips"].as_array().unwrap() {
            assert_eq!(ip["interface"], 1);
            assert_eq!(ip.get("version").is_some(), version < "1.0.0");
            let shown = netns.ip("address show eth0").unwrap();
            assert!(shown.contains(ip["address"].as_str().unwrap()), "{shown}");
        }
        assert_eq!(container.get("mtu").is_some(), version == "1.1.0");

        // As a runtime goes on: with what it was told.
        call.config["prevResult"] = result.clone();
        if version != "0.3.1" {
            assert_eq!(node.call("CHECK", &call).result(), &Value::Null);
        }
        assert_eq!(node.call("DEL", &call).result(), &Value::Null);
        assert!(netns.ip("link show eth0").is_err());
        // Once more, and with nothing left at all.
        call.netns = "".into();
        call.config.as_object_mut().unwrap().remove("prevResult");
        assert_eq!(node.call("DEL", &call).result(), &Value::Null);
    }
    assert!(node.links().is_empty() && node.ports().is_empty());

    let never = node.lab.namespace("never").unwrap();
    let mut call = node.about("never", &never);
    for (asked, answered) in [("1.0.0", "1.0.0"), ("0.2.0", "0.2.0"), ("9.9.9", "9.9.9")] {
        call.config = json!({ "cniVersion": asked });
        let said = node.call("VERSION", &call);
        assert_eq!(said.result()["cniVersion"], answered);
        assert_eq!(said.result()["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

#[test]
fn containers_that_are_nobodys_pods_reach_each_other() {
    if !privileged() {
        return;
    }
    let closed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: closed, namespace: default}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n";
    let node = Node::new("");
    let (a, b) = (node.lab.namespace("a").unwrap(), node.lab.namespace("b").unwrap());
    node.call("ADD", &node.about("a", &a)).result();
    let mut call = node.about("b", &b);
    let mapping = json!([{ "hostPort": 8088, "containerPort": SERVED, "protocol": "tcp" },
                         { "hostPort": 0, "containerPort": 1, "protocol": "udp" }]);
    call.config["runtimeConfig"] = json!({ "portMappings": mapping });
    let added = node.call("ADD", &call);
    start_server(&b, "b");
    for address in added.addresses() {
        assert_eq!(ask(&a, SocketAddr::new(address, SERVED), PATIENCE).unwrap().name, "b");
    }
    // Its host port, from outside.
    for address in node.wirelane.plan().addresses() {
        assert_eq!(ask(&node.client, SocketAddr::new(address, 8088), PATIENCE).unwrap().name, "b");
    }
    // They are pods of the namespace "default".
    assert_eq!(node.ports(), ["default/a", "default/b"]);
    node.apply("closed.yaml", closed);
    let server = SocketAddr::new(added.addresses()[0], SERVED);
    wirelane::lab::eventually("the policy to hold", PATIENCE, || match ask(&a, server, SILENCE) {
        Ok(_) => Err("it still answers"),
        Err(_) => Ok(()),
    })
    .unwrap();

    node.call("DEL", &call).result();
    let gone = SocketAddr::new(node.wirelane.plan().addresses()[0], 8088);
    wirelane::lab::eventually("the host port to go", PATIENCE, || match ask(&node.client, gone, SILENCE) {
        Ok(_) => Err("it still answers"),
        Err(_) => Ok(()),
    })
    .unwrap();
}

#[test]
fn the_same_again_and_another_container_of_the_pod() {
    if !privileged() {
        return;
    }
    let node = Node::new(&pod_manifest("web", ""));
    let (first, second) = (node.lab.namespace("first").unwrap(), node.lab.namespace("second").unwrap());
    let args = pod_args("web");
    let mut call = node.about("c1", &first);
    call.args = &args;
    let added = node.call("ADD", &call);
    assert_eq!(node.ports(), ["test/web"]);
    // A runtime that did not hear the answer asks again.
    assert_eq!(node.call("ADD", &call).result(), added.result());
    // Another interface of the pod there is not.
    let other_interface = crate::node::Call { interface: "eth1", ..call.clone() };
    let (code, details) = node.call("ADD", &other_interface).error();
    assert_eq!(
        (code, details.contains("is attached by its interface eth0 already")),
        (101, true),
        "{details}"
    );
    assert_eq!(node.call("ADD", &call).result(), added.result());

    // Its next container takes over, with another address: the old one may still be in use somewhere.
    let mut next = node.about("c2", &second);
    next.args = &args;
    let taken = node.call("ADD", &next);
    assert_ne!(taken.addresses(), added.addresses());
    assert!(first.ip("link show eth0").is_err());
    assert_eq!((node.ports().len(), node.links().len()), (1, 1));
    // The first one's end comes late.
    node.call("DEL", &call).result();
    next.config["prevResult"] = taken.json.clone();
    node.call("CHECK", &next).result();
    // It was attached to, and is in, another namespace.
    let mut moved = node.about("c2", &first);
    moved.args = &args;
    let moved_to = node.call("ADD", &moved);
    assert!(second.ip("link show eth0").is_err() && first.ip("link show eth0").is_ok());
    assert_eq!(node.ports(), ["test/web"]);
    assert_ne!(moved_to.addresses(), taken.addresses());

    // A pod of the same name, and yet another one: the source has not heard of it.
    let stale = args.replace("uid-web", "uid-of-the-next");
    let mut call = node.about("c3", &second);
    call.args = &stale;
    call.config["patienceSeconds"] = json!(0);
    let (code, details) = node.call("ADD", &call).error();
    assert_eq!((code, &*details), (11, "Pod test/web is not known: there is no such object in the source"));
}

#[test]
fn chained_behind_another_plugin() {
    if !privileged() {
        return;
    }
    let node = Node::new("");
    let netns = node.lab.namespace("c").unwrap();
    netns.ip("link add net1 type dummy").unwrap();
    let mut call = node.about("c", &netns);
    call.config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "net1", "sandbox": call.netns }],
        "ips": [{ "address": "192.0.2.99/24", "interface": 0 }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let added = node.call("ADD", &call);
    let result = added.result();
    assert_eq!(result["interfaces"][0]["name"], "net1");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(0), &json!(2)));
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
    call.config["prevResult"] = result.clone();
    node.call("CHECK", &call).result();
    node.call("DEL", &call).result();
    assert!(netns.ip("link show net1").is_ok());
}

#[test]
fn check_sees_what_is_missing() {
    if !privileged() {
        return;
    }
    let node = Node::new("");
    let netns = node.lab.namespace("c").unwrap();
    let mut call = node.about("c", &netns);
    let added = node.call("ADD", &call);
    call.config["prevResult"] = added.result().clone();
    node.call("CHECK", &call).result();
    let says = |expected: &str| {
        let (code, details) = node.call("CHECK", &call).error();
        assert_eq!((code, details.contains(expected)), (100, true), "{details}");
    };
    let host = added.json["interfaces"][0]["name"].as_str().unwrap();
    let address = added.addresses()[0];
    let on_node = node.wirelane.namespace();

    netns.ip("route del default").unwrap();
    says("default route by way of 169.254.1.1 is gone");
    netns.ip("route add default via 169.254.1.1 dev eth0 onlink").unwrap();
    node.call("CHECK", &call).result();
    netns.ip(&format!("address del {address}/32 dev eth0")).unwrap();
    says("is gone from eth0");
    netns.ip(&format!("address add {address}/32 dev eth0")).unwrap();
    netns.ip("link set eth0 down").unwrap();
    says("interface eth0 of the container is down");
    netns.ip("link set eth0 up").unwrap();
    on_node.ip(&format!("link set {host} down")).unwrap();
    says(&format!("interface {host} is down"));
    on_node.ip(&format!("link del {host}")).unwrap();
    says(&format!("interface {host} is gone"));

    let mut other = call.clone();
    other.config["prevResult"]["ips"][0]["address"] = json!("10.244.1.99/32");
    let (_, details) = node.call("CHECK", &other).error();
    assert!(details.contains("10.244.1.99"), "{details}");
    node.call("DEL", &call).result();
    assert_eq!(node.call("CHECK", &call).error().0, 3);
}

#[test]
fn gc_keeps_what_it_is_told_to() {
    if !privileged() {
        return;
    }
    let node = Node::new("");
    for name in ["keep", "lost", "other"] {
        let netns = node.lab.namespace(name).unwrap();
        let mut call = node.about(name, &netns);
        if name == "other" {
            call.config["name"] = json!("another-network");
        }
        node.call("ADD", &call).result();
    }
    // Nobody's at all: a link as ours are, which no lease is about.
    let orphan =
        wirelane_control::attach::host_interface(&wirelane_control::model::Name::new("default", "orphan"));
    let on_node = node.wirelane.namespace();
    on_node.ip(&format!("link add {orphan} type veth peer name orphan")).unwrap();
    on_node.ip(&format!("link set {orphan} alias wirelane:default/orphan")).unwrap();
    on_node.ip("link add unrelated type dummy").unwrap();

    let netns = node.lab.namespace("none").unwrap();
    let mut call = node.about("", &netns);
    call.config["cni.dev/valid-attachments"] = json!([{ "containerID": "keep", "ifname": "eth0" }]);
    assert_eq!(node.call("GC", &call).result(), &Value::Null);
    assert_eq!(node.ports(), ["default/keep", "default/other"]);
    let links = node.links();
    assert!(links.len() == 2 && !links.contains(&orphan), "{links:?}");
    assert!(on_node.ip("link show unrelated").is_ok());
    let owners = node.remembered();
    let owners = owners["leases"].as_array().unwrap().iter().map(|lease| lease["container"].clone());
    assert_eq!(owners.collect::<Vec<_>>(), ["keep", "other"]);
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    if !privileged() {
        return;
    }
    let node = Node::new("");
    let netns = node.lab.namespace("c").unwrap();
    let good = node.about("c", &netns);
    let expect = |command: &str, change: fn(&mut crate::node::Call<'_>), code: u64, says: &str| {
        let mut call = good.clone();
        change(&mut call);
        let (found, details) = node.call(command, &call).error();
        assert_eq!((found, details.contains(says)), (code, true), "{command}: {details}");
    };
    expect("NONSENSE", |_| {}, 4, "CNI_COMMAND");
    expect("ADD", |call| call.container = "", 4, "CNI_CONTAINERID");
    expect("ADD", |call| call.container = "../etc", 4, "CNI_CONTAINERID");
    expect("ADD", |call| call.interface = "a-name-that-is-too-long", 4, "CNI_IFNAME");
    expect("ADD", |call| call.netns = "".into(), 4, "CNI_NETNS");
    expect("ADD", |call| call.netns = "/nowhere".into(), 4, "No such file");
    expect("ADD", |call| call.args = "nonsense", 4, "CNI_ARGS");
    expect("ADD", |call| call.config["cniVersion"] = json!("0.2.0"), 1, "0.2.0");
    expect("ADD", |call| call.config["cniVersion"] = json!("2.0.0"), 1, "2.0.0");
    expect("STATUS", |call| call.config["cniVersion"] = json!("1.0.0"), 1, "1.1.0");
    expect("ADD", |call| call.config = json!("no configuration"), 6, "");
    expect("ADD", |call| call.config["name"] = json!(""), 7, "name");
    expect("CHECK", |_| {}, 7, "prevResult");
    expect("GC", |_| {}, 7, "cni.dev/valid-attachments");
    let mapping = |call: &mut crate::node::Call<'_>| {
        let mapping = json!([{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }]);
        call.config["runtimeConfig"] = json!({ "portMappings": mapping });
    };
    expect("ADD", mapping, 7, "portMappings[0].protocol");
    // Its name is taken in the container.
    netns.ip("link add eth0 type dummy").unwrap();
    expect("ADD", |_| {}, 101, "interface eth0 is already there");
    netns.ip("link del eth0").unwrap();
    assert!(node.links().is_empty() && node.ports().is_empty());
    assert_eq!(node.remembered()["leases"], json!([]));
}

#[test]
fn no_address_is_left() {
    if !privileged() {
        return;
    }
    let node = Node::configured("", "address_hold_seconds = 3600\n");
    let small = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {podCIDRs: [10.244.1.0/30]}\n\
                 status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}\n";
    node.apply("node.yaml", small);
    let (a, b) = (node.lab.namespace("a").unwrap(), node.lab.namespace("b").unwrap());
    let mut call = node.about("a", &a);
    call.config["patienceSeconds"] = json!(0);
    wirelane::lab::eventually("the other range", PATIENCE, || {
        let added = node.call("ADD", &call);
        if added.addresses().len() == 1 {
            return Ok(());
        }
        node.call("DEL", &call).result();
        Err("the node still has its old ranges")
    })
    .unwrap();
    let mut other = node.about("b", &b);
    other.config["patienceSeconds"] = json!(0);
    let (code, details) = node.call("ADD", &other).error();
    assert_eq!((code, details.contains("no address is left in 10.244.1.0/30")), (102, true), "{details}");
    let (code, details) = node.call("STATUS", &other).error();
    assert_eq!((code, details.contains("no address is left")), (50, true), "{details}");
    // Its owner is gone, and it is kept back: that passes.
    node.call("DEL", &call).result();
    let (code, details) = node.call("ADD", &other).error();
    assert_eq!((code, details.contains("1 wait to be given again")), (11, true), "{details}");
}
