//! The way of the node's own processes to host ports at loopback addresses.
//!
//! What a process says to 127.0.0.1 never leaves the loopback device, and a routing rule alone does not change that: the
//! kubelet has everything dropped that goes to 127.0.0.0/8 from elsewhere and is not translated by the kernel. So the
//! kernel translates it to the pod behind the port (nftables, a table of ours), and, where it comes from a loopback
//! address, gives it the gateway's: a pod cannot answer 127.0.0.1. The dataplane meets an ordinary packet from its own node
//! to a pod. What pods or the network send to 127.0.0.0/8 is a martian here (`wire/addr.rs`), and never reaches the kernel by
//! the pair, which is the only link that may carry such addresses.
//!
//! IPv6 has nothing like `route_localnet`: ::1 stays on the loopback device.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    Chained, CmpOps, MetaKeys, Nfgenmsg, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers,
};
use netlink_bindings::utils::RequestBuf;
use netlink_socket2::NetlinkSocket;

use super::KernelError;
use crate::tables::LoopbackPort;

/// Our table (`nft list table ip wirelane`).
const TABLE: &CStr = c"wirelane";
const OUTPUT: &CStr = c"output";
const POSTROUTING: &CStr = c"postrouting";

/// linux/netfilter.h: NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING.
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;
/// linux/netfilter_ipv4.h: NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC.
const DESTINATION: i32 = -100;
const SOURCE: i32 = 100;
/// linux/netfilter/nf_tables.h: NFT_NAT_SNAT, NFT_NAT_DNAT.
const SNAT: u32 = 0;
const DNAT: u32 = 1;
/// Of the messages around a transaction: NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;

/// Has the kernel translate what the node's processes send to these ports, through the link `host`, and nothing else.
///
/// # Errors
/// When the kernel refuses, or lacks nftables and its translation.
pub(super) fn sync(host: &str, gateway: Ipv4Addr, ports: &BTreeSet<LoopbackPort>) -> Result<(), KernelError> {
    let mut change = Change::new();
    // The kernel takes a transaction as a whole: nobody meets the table half made.
    change.replace_table();
    change.chain(OUTPUT, LOCAL_OUT, DESTINATION);
    change.chain(POSTROUTING, POST_ROUTING, SOURCE);
    for port in ports {
        change
            .rule(OUTPUT)
            .destination(*port.at.ip())
            .protocol(port.protocol)
            .destination_port(port.at.port())
            .translate(DNAT, *port.to.ip(), Some(port.to.port()));
    }
    change.rule(POSTROUTING).leaves_by(host).loopback_source().translate(SNAT, gateway, None);
    change.commit().map_err(|source| KernelError::Io {
        what: "have the kernel translate host ports at loopback addresses (nftables)".into(),
        source,
    })
}

/// Takes our table away, if it is there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), KernelError> {
    let mut change = Change::new();
    change.delete_table();
    match change.commit() {
        Err(source) if !is_without(&source) => {
            Err(KernelError::Io { what: "delete the nftables table wirelane".into(), source })
        }
        _ => Ok(()),
    }
}

/// Whether a kernel says so that has no such table, or no nftables.
fn is_without(error: &io::Error) -> bool {
    [libc::ENOENT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EINVAL]
        .map(Some)
        .contains(&error.raw_os_error())
}

/// A transaction of nftables.
struct Change {
    socket: NetlinkSocket,
    requests: Chained<'static>,
}

impl Change {
    fn new() -> Change {
        let mut socket = NetlinkSocket::new();
        let mut requests = Chained::new(socket.reserve_seq(1 << 17));
        requests.request().op_batch_begin_do(&around());
        Change { socket, requests }
    }

    fn delete_table(&mut self) {
        self.requests.request().op_deltable_do(&of_ipv4()).encode().push_name(TABLE);
    }

    /// Deleting needs one to be there.
    fn replace_table(&mut self) {
        let add = |change: &mut Change| {
            _ = change.requests.request().set_create().op_newtable_do(&of_ipv4()).encode().push_name(TABLE);
        };
        add(self);
        self.delete_table();
        add(self);
    }

    fn chain(&mut self, name: &CStr, hook: u32, priority: i32) {
        let chain = self.requests.request().set_create().op_newchain_do(&of_ipv4()).into_encoder();
        let chain = chain.push_table(TABLE).push_name(name).push_type(c"nat");
        chain.nested_hook().push_num(hook).push_priority(priority);
    }

    fn rule(&mut self, chain: &CStr) -> Rule<'_> {
        let rule = self.requests.request().set_create().set_append().op_newrule_do(&of_ipv4()).into_encoder();
        Rule(rule.push_table(TABLE).push_chain(chain).nested_expressions())
    }

    fn commit(mut self) -> io::Result<()> {
        self.requests.request().op_batch_end_do(&around());
        let requests = self.requests.finalize();
        Ok(self.socket.request_chained(&requests)?.recv_all()?)
    }
}

fn around() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}

fn of_ipv4() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = libc::AF_INET as u8;
    header
}

/// A rule being written: what a packet must be, then what becomes of it.
struct Rule<'a>(PushExprListAttrs<PushRuleAttrs<RequestBuf<'a>>>);

const FIRST: u32 = Registers::Reg1 as u32;
const SECOND: u32 = Registers::Reg2 as u32;

impl Rule<'_> {
    fn destination(self, address: Ipv4Addr) -> Self {
        self.field(PayloadBase::NetworkHeader, 16, 4).is(&address.octets())
    }

    /// 127.0.0.0/8.
    fn loopback_source(self) -> Self {
        self.field(PayloadBase::NetworkHeader, 12, 1).is(&[127])
    }

    fn protocol(self, protocol: u8) -> Self {
        self.meta(MetaKeys::L4Proto).is(&[protocol])
    }

    /// The destination port is in the same place for TCP, UDP and SCTP.
    fn destination_port(self, port: u16) -> Self {
        self.field(PayloadBase::TransportHeader, 2, 2).is(&port.to_be_bytes())
    }

    fn leaves_by(self, link: &str) -> Self {
        // IFNAMSIZ
        let mut name = [0; 16];
        name[..link.len()].copy_from_slice(link.as_bytes());
        self.meta(MetaKeys::Oifname).is(&name)
    }

    fn translate(self, kind: u32, address: Ipv4Addr, port: Option<u16>) {
        let rule = self.put(FIRST, &address.octets());
        let rule = match port {
            Some(port) => rule.put(SECOND, &port.to_be_bytes()),
            None => rule,
        };
        let nat = rule.0.nested_elem().nested_data_nat();
        let nat = nat.push_type(kind).push_family(libc::AF_INET as u32).push_reg_addr_min(FIRST);
        if port.is_some() {
            nat.push_reg_proto_min(SECOND);
        }
    }

    fn field(self, base: PayloadBase, offset: u32, len: u32) -> Self {
        let field = self.0.nested_elem().nested_data_payload().push_dreg(FIRST);
        let field = field.push_base(base as u32).push_offset(offset).push_len(len);
        Rule(field.end_nested().end_nested())
    }

    fn meta(self, key: MetaKeys) -> Self {
        let meta = self.0.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(FIRST);
        Rule(meta.end_nested().end_nested())
    }

    /// What was taken last is this.
    fn is(self, value: &[u8]) -> Self {
        let compare = self.0.nested_elem().nested_data_cmp().push_sreg(FIRST).push_op(CmpOps::Eq as u32);
        Rule(compare.nested_data().push_value(value).end_nested().end_nested().end_nested())
    }

    fn put(self, register: u32, value: &[u8]) -> Self {
        let put = self.0.nested_elem().nested_data_immediate().push_dreg(register);
        Rule(put.nested_data().push_value(value).end_nested().end_nested().end_nested())
    }
}
