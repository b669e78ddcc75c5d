//! The wires: a bridge in a namespace of its own, to which the others are linked.

use std::net::IpAddr;

use super::{Lab, Namespace, Result, plan};

/// A switch that forwards frames between whatever is joined to it.
#[derive(Debug)]
pub struct Fabric {
    namespace: Namespace,
}

/// What a namespace gets when it joins a [`Fabric`].
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// The interface's name in the namespace.
    pub interface: &'a str,
    /// Its addresses, in the wire's prefixes.
    pub addresses: &'a [IpAddr],
    /// Its receive and transmit queues.
    pub queues: usize,
}

impl Fabric {
    /// A switch with no ports.
    ///
    /// # Errors
    /// When its namespace cannot be made.
    pub fn new(lab: &Lab) -> Result<Fabric> {
        let namespace = lab.namespace("fabric")?;
        // It forwards frames and has no opinion of its own: no addresses, no snooping, no delay.
        namespace.set("ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip("link add bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        namespace.ip(&format!("link set bridge mtu {} up", plan::WIRE_MTU))?;
        Ok(Fabric { namespace })
    }

    /// Its namespace, where each port bears the name of the namespace at its other end.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Links a namespace to the switch.
    ///
    /// # Errors
    /// When it is joined already, or the kernel refuses.
    pub fn join(&self, namespace: &Namespace, port: Port<'_>) -> Result<()> {
        let Port { interface, addresses, queues } = port;
        let (mtu, here, there) = (plan::WIRE_MTU, namespace.short_name(), namespace.name());
        // The switch's end has as many queues to send from as the other end has to receive on: veth pairs them by
        // number, so frames spread over the other end's queues as a card's flow hash would spread them.
        self.namespace.ip(&format!(
            "link add {here} mtu {mtu} numtxqueues {queues} numrxqueues {queues} type veth \
             peer name {interface} netns {there} mtu {mtu} numtxqueues {queues} numrxqueues {queues}"
        ))?;
        self.namespace.switch_offloads_off(here)?;
        namespace.switch_offloads_off(interface)?;
        self.namespace.ip(&format!("link set {here} master bridge up"))?;
        namespace.trust_addresses(interface)?;
        namespace.ip(&format!("link set {interface} up"))?;
        for address in addresses {
            let length = if address.is_ipv4() { plan::WIRE_IPV4_LEN } else { plan::WIRE_IPV6_LEN };
            namespace.ip(&format!("address add {address}/{length} dev {interface}"))?;
        }
        Ok(())
    }
}
