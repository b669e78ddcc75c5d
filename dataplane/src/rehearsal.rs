//! What the path would do with first packets of connections, without a port, a worker or anybody's flows: the same engine
//! over memory, and tables that may be anybody's.

use std::io;
use std::sync::Arc;

use crate::batch::{BATCH, Batch, Key, PortId, flags};
use crate::clock::Now;
use crate::engine::{Engine, Shared, Sizes};
use crate::io::frame::{Frame, FramePool};
use crate::stats::DropRecord;
use crate::tables::{HOST_PORT, Port, Tables, UPLINK_PORT};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{icmp, proto, tcp};

/// An engine of its own.
#[derive(Debug)]
pub struct Rehearsal {
    tables: Arc<Tables>,
    engine: Engine,
    pool: FramePool,
    batch: Batch,
}

/// What becomes of a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the node's own kernel's business.
    NotOurs,
    /// It goes on, or would if its next hop were known.
    Passes,
    /// It does not: as the record of drops has it.
    Refused(DropRecord),
}

/// Flows that a rehearsal remembers. Whatever is decided is decided before a flow has to find room.
const FLOWS: u32 = 1 << 12;

/// Chance is the same in all rehearsals.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rehearsal {
    /// By these tables.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(tables: Arc<Tables>) -> io::Result<Rehearsal> {
        let sizes = Sizes { workers: 1, flows_v4: FLOWS, flows_v6: FLOWS, seed: SEED };
        let tables = without_limits(tables);
        let shared = Shared::new(&sizes)?;
        shared.publish(tables.clone());
        let pool = FramePool::in_memory(2 * BATCH as u32, 2048)?;
        Ok(Rehearsal { tables, engine: Engine::new(shared, 0), pool, batch: Batch::default() })
    }

    /// What becomes of the first packet of a connection, as its sender sends it. `None` if nothing with such a source
    /// can come in: it is a pod of this node that is not attached.
    pub fn open(&mut self, key: &Key) -> Option<Outcome> {
        let (in_port, mac) = self.entrance(key)?;
        let mut frame = self.pool.alloc()?;
        write(&mut frame, key, mac);
        self.batch.push(frame, in_port);
        self.engine.run(&mut self.batch, Now::read());
        let meta = &self.batch.meta[0];
        let outcome = match meta.verdict {
            Verdict::Host => Outcome::NotOurs,
            Verdict::Drop if is_of_the_moment(meta.reason) => Outcome::Passes,
            verdict if verdict == Verdict::Drop || meta.has(flags::REFUSED) => {
                self.engine.stats().drop_ring.latest(1).pop().map_or(Outcome::Passes, Outcome::Refused)
            }
            _ => Outcome::Passes,
        };
        self.batch.meta.clear();
        self.batch.frames.drain(..).for_each(|frame| self.pool.free(frame));
        self.engine.quiescent();
        Some(outcome)
    }

    /// The tables.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Where packets with such a source come in, and the MAC address that they are for.
    fn entrance(&self, key: &Key) -> Option<(PortId, Mac)> {
        let id = match self.tables.pods.get(&key.src) {
            _ if self.tables.is_node_address(&key.src) => HOST_PORT,
            Some(pod) if pod.local => pod.port?,
            _ => UPLINK_PORT,
        };
        Some((id, self.tables.port(id)?.mac))
    }
}

/// Pods' bandwidth is not for rehearsals.
fn without_limits(tables: Arc<Tables>) -> Arc<Tables> {
    if tables.ports.iter().flatten().all(|port| port.limits.is_none()) {
        return tables;
    }
    let without = |port: &Port| Port { limits: None, ..port.clone() };
    let ports = tables.ports.iter().map(|port| port.as_ref().map(without)).collect();
    Arc::new(Tables { ports: Arc::new(ports), ..(*tables).clone() })
}

/// Whether a packet is dropped for what is so at this moment and in this place, and not for what the cluster wants.
fn is_of_the_moment(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NeighbourUnresolved
            | DropReason::PortDetached
            | DropReason::TransmitFull
            | DropReason::FlowTableFull
            | DropReason::PodLimit
            | DropReason::SourceLimit
            | DropReason::MasqueradeLimit
            | DropReason::SourcePortsExhausted
            | DropReason::BandwidthIngress
            | DropReason::BandwidthEgress
    )
}

/// The first packet of a connection. Transport checksums are left out: nobody on the path looks at them.
fn write(frame: &mut Frame, key: &Key, dst: Mac) {
    let v6 = !key.src.is_v4();
    let l4 = ethernet::HEADER_LEN + if v6 { ipv6::HEADER_LEN } else { ipv4::MIN_LEN };
    let fits = frame.resize(l4 + L4_LEN);
    debug_assert!(fits, "a frame holds the headers of a packet");
    let bytes = frame.bytes_mut();
    let ether_type = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
    let link = Ethernet::new(dst, [2, 0, 0, 0, 0, 1], ether_type);
    bytes[..ethernet::HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&link));
    if v6 {
        let header = Ipv6::new(key.src.0, key.dst.0, key.proto, L4_LEN as u16, TTL);
        bytes[ethernet::HEADER_LEN..l4].copy_from_slice(bytemuck::bytes_of(&header));
    } else {
        let len = (ipv4::MIN_LEN + L4_LEN) as u16;
        let header = Ipv4::new(key.src.last4(), key.dst.last4(), key.proto, len, TTL);
        bytes[ethernet::HEADER_LEN..l4].copy_from_slice(bytemuck::bytes_of(&header));
    }
    let mut segment = [0; L4_LEN];
    segment[..2].copy_from_slice(&key.sport.to_be_bytes());
    segment[2..4].copy_from_slice(&key.dport.to_be_bytes());
    match key.proto {
        proto::TCP => (segment[12], segment[13]) = (((tcp::MIN_LEN / 4) << 4) as u8, tcp::SYN),
        proto::UDP => segment[5] = L4_LEN as u8,
        proto::ICMP => segment[..4].copy_from_slice(&[icmp::v4::ECHO, 0, 0, 0]),
        proto::ICMPV6 => segment[..4].copy_from_slice(&[icmp::v6::ECHO, 0, 0, 0]),
        _ => {}
    }
    if matches!(key.proto, proto::ICMP | proto::ICMPV6) {
        segment[4..6].copy_from_slice(&key.sport.to_be_bytes());
    }
    bytes[l4..].copy_from_slice(&segment);
}

/// Of a TCP header without options; more than others need.
const L4_LEN: usize = tcp::MIN_LEN;
/// As senders have it.
const TTL: u8 = 64;
