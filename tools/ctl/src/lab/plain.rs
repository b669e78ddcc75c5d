//! A Kubernetes node that is nothing but Linux: a kernel VXLAN device, or none, and routes to other nodes' and its own pods.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    Fabric, Lab, Namespace, Port, Result,
    plan::{self, NodePlan, vtep_mac},
};

/// A node whose dataplane is the kernel's.
#[derive(Debug)]
pub struct PlainNode {
    namespace: Namespace,
    plan: NodePlan,
    pod_mtu: u32,
    /// How many pods have been made.
    pods: AtomicU32,
}

/// The node's VXLAN device.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<'a> {
    /// UDP port at both ends.
    pub port: u16,
    /// The network's number.
    pub vni: u32,
    /// Whether it runs over IPv6 rather than IPv4.
    pub over_ipv6: bool,
    /// Whether the outer UDP checksum over IPv4 is computed; else it is zero. Over IPv6 it always is.
    pub udp_checksum: bool,
    /// First and last outer source port, or the kernel's own range.
    pub source_ports: Option<(u16, u16)>,
    /// The other nodes.
    pub peers: &'a [NodePlan],
}

impl Default for Tunnel<'_> {
    fn default() -> Self {
        Tunnel { port: 4789, vni: 4096, over_ipv6: false, udp_checksum: true, source_ports: None, peers: &[] }
    }
}

impl PlainNode {
    /// A node on the wire, with a tunnel to its peers and no pods yet.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn new(lab: &Lab, fabric: &Fabric, plan: NodePlan, tunnel: Tunnel<'_>) -> Result<PlainNode> {
        let pod_mtu = if tunnel.over_ipv6 { plan::POD_MTU_OVER_IPV6 } else { plan::POD_MTU };
        let node = PlainNode::unconnected(lab, fabric, plan, pod_mtu)?;
        node.open_tunnel(tunnel)?;
        Ok(node)
    }

    /// A node on the wire without any tunnel: it has a route to each peer's pods, by the peer's own address.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn native(lab: &Lab, fabric: &Fabric, plan: NodePlan, peers: &[NodePlan]) -> Result<PlainNode> {
        let node = PlainNode::unconnected(lab, fabric, plan, plan::WIRE_MTU)?;
        for peer in peers {
            node.namespace.ip(&format!("route add {} via {}", peer.pods_ipv4, peer.ipv4))?;
            node.namespace.ip(&format!("route add {} via {}", peer.pods_ipv6, peer.ipv6))?;
        }
        Ok(node)
    }

    fn unconnected(lab: &Lab, fabric: &Fabric, plan: NodePlan, pod_mtu: u32) -> Result<PlainNode> {
        let namespace = lab.namespace(plan.name)?;
        fabric.join(&namespace, Port { interface: "eth0", addresses: &plan.addresses(), queues: 1 })?;
        namespace.set("ipv4/ip_forward", "1")?;
        namespace.set("ipv6/conf/all/forwarding", "1")?;
        Ok(PlainNode { namespace, plan, pod_mtu, pods: AtomicU32::new(0) })
    }

    /// The namespace that is the node.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The node's name and addresses.
    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Makes a pod: a namespace that is linked to the node and has these of the node's pod addresses.
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses.
    pub fn add_pod(&self, lab: &Lab, name: &str, addresses: &[IpAddr]) -> Result<Namespace> {
        let pod = lab.namespace(name)?;
        let mtu = self.pod_mtu;
        // Numbered, because a pod's name may be longer than an interface's.
        let host_end = format!("pod{}", self.pods.fetch_add(1, Ordering::Relaxed));
        self.namespace.ip(&format!(
            "link add {host_end} mtu {mtu} type veth peer name eth0 netns {} mtu {mtu}",
            pod.name()
        ))?;
        for (namespace, interface) in [(&self.namespace, host_end.as_str()), (&pod, "eth0")] {
            namespace.trust_addresses(interface)?;
            namespace.ip(&format!("link set {interface} up"))?;
        }
        for address in addresses {
            let gateway: IpAddr = match address {
                IpAddr::V4(_) => self.plan.gateway_ipv4().into(),
                IpAddr::V6(_) => self.plan.gateway_ipv6().into(),
            };
            // As CNI's `ptp` plugin has it: the gateway address is on the node's end of every pod's link.
            let host_length = if address.is_ipv4() { 32 } else { 128 };
            self.namespace.ip(&format!("address add {gateway}/{host_length} dev {host_end}"))?;
            self.namespace.ip(&format!("route add {address}/{host_length} dev {host_end}"))?;
            pod.ip(&format!("address add {address}/{host_length} dev eth0"))?;
            pod.ip(&format!("route add {gateway}/{host_length} dev eth0"))?;
            pod.ip(&format!("route add default via {gateway}"))?;
        }
        Ok(pod)
    }

    /// Pods of other nodes are behind those nodes' gateway addresses, whose MACs and tunnel ends are all static:
    /// nothing is learned, so nothing is asked.
    fn open_tunnel(&self, tunnel: Tunnel<'_>) -> Result<()> {
        let Tunnel { port, vni, over_ipv6, udp_checksum, source_ports, peers } = tunnel;
        let checksum = match (over_ipv6, udp_checksum) {
            (true, _) => "noudp6zerocsumtx noudp6zerocsumrx",
            (false, true) => "udpcsum",
            (false, false) => "noudpcsum",
        };
        let end = |plan: &NodePlan| plan.addresses()[usize::from(over_ipv6)];
        let source_ports =
            source_ports.map(|(first, last)| format!("srcport {first} {last}")).unwrap_or_default();
        let ip = |args: &str| self.namespace.ip(args);
        ip(&format!(
            "link add vxlan address {mac} mtu {mtu} type vxlan id {vni} dev eth0 local {local} dstport {port} \
             {source_ports} nolearning {checksum}",
            mac = vtep_mac(end(&self.plan)),
            mtu = self.pod_mtu,
            local = end(&self.plan),
        ))?;
        ip("link set vxlan up")?;
        for peer in peers {
            let mac = vtep_mac(end(peer));
            self.namespace
                .run("bridge", ["fdb", "append", &mac, "dev", "vxlan", "dst", &end(peer).to_string()])?;
            for (pods, gateway) in [
                (peer.pods_ipv4.to_string(), peer.gateway_ipv4().to_string()),
                (peer.pods_ipv6.to_string(), peer.gateway_ipv6().to_string()),
            ] {
                ip(&format!("neighbour add {gateway} lladdr {mac} dev vxlan nud permanent"))?;
                ip(&format!("route add {pods} via {gateway} dev vxlan onlink"))?;
            }
        }
        Ok(())
    }
}
