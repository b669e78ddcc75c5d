//! The addresses of the usual network: a client and two nodes on one wire, with pods behind the nodes.
//! The wire's are from the ranges for documentation (RFC 5737, RFC 3849).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Length of the wire's IPv4 prefix.
pub const WIRE_IPV4_LEN: u8 = 24;
/// Length of the wire's IPv6 prefix.
pub const WIRE_IPV6_LEN: u8 = 64;
/// MTU of the wire.
pub const WIRE_MTU: u32 = 1500;
/// MTU of the pods: the wire's less the tunnel's 50 bytes over IPv4.
pub const POD_MTU: u32 = 1450;
/// MTU of the pods where there is a tunnel over IPv6, which takes 70 bytes.
pub const POD_MTU_OVER_IPV6: u32 = 1430;

/// The client's addresses.
pub const CLIENT: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The first node.
pub const NODE1: NodePlan = NodePlan::new("node1", 1);
/// The second node.
pub const NODE2: NodePlan = NodePlan::new("node2", 2);

/// The third node.
pub const NODE3: NodePlan = NodePlan::new("node3", 3);

/// A node's name and addresses.
#[derive(Clone, Copy, Debug)]
pub struct NodePlan {
    /// The name of its Node object.
    pub name: &'static str,
    /// Its address on the wire.
    pub ipv4: Ipv4Addr,
    /// Its other address on the wire.
    pub ipv6: Ipv6Addr,
    /// Its pods' addresses.
    pub pods_ipv4: Ipv4Net,
    /// Its pods' other addresses.
    pub pods_ipv6: Ipv6Net,
}

impl NodePlan {
    /// Node `number`: 192.0.2.1N and 2001:db8::1N, with pods in 10.244.N.0/24 and fd00:244:N::/64.
    pub const fn new(name: &'static str, number: u8) -> NodePlan {
        let n = number as u16;
        NodePlan {
            name,
            ipv4: Ipv4Addr::new(192, 0, 2, 10 + number),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + n),
            pods_ipv4: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24),
            pods_ipv6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x244, n, 0, 0, 0, 0, 0), 64),
        }
    }

    /// Its addresses on the wire.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// Its address towards its pods: the first after the network's address.
    pub fn gateway_ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pods_ipv4.network()) + 1)
    }

    /// Its other address towards its pods.
    pub fn gateway_ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.pods_ipv6.network()) + 1)
    }
}

/// The MAC of a node's end of the tunnel, as the other nodes derive it from its address: 02:57 and the last four bytes.
pub fn vtep_mac(address: IpAddr) -> String {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets()[12..].to_vec(),
    };
    bytes.iter().fold("02:57".to_owned(), |mac, byte| format!("{mac}:{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_derived_from_its_number() {
        assert_eq!(NODE2.addresses().map(|address| address.to_string()), ["192.0.2.12", "2001:db8::12"]);
        assert_eq!(NODE2.gateway_ipv4().to_string(), "10.244.2.1");
        assert_eq!(NODE2.gateway_ipv6().to_string(), "fd00:244:2::1");
        let macs = NODE2.addresses().map(vtep_mac);
        assert_eq!(macs, ["02:57:c0:00:02:0c", "02:57:00:00:00:12"]);
    }
}
