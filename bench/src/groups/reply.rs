//! The stage that answers senders, seen at ARP requests: the one answer that every pod asks for.

use std::net::IpAddr;

use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, SlicedPacket};
use wirelane_dataplane::batch::{BATCH, Batch};
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::stages::parse::LINK_GATEWAY_V4;
use wirelane_dataplane::verdict::Verdict;
use wirelane_dataplane::wire::ethernet::GATEWAY_MAC;

use crate::groups::Group;
use crate::measure::Samples;
use crate::report::Report;
use crate::stages::StageCounts;
use crate::world::{Step, Topology, World};

pub(super) const GROUP: Group = Group { prefixes: &["path/stages/reply"], run };

const BATCHES: usize = 512;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let world = World::new(Topology::Plain, 64, 64, 1)?;
    let mut engine = Engine::new(world.shared().clone(), 0);
    let mut pool = FramePool::in_memory(BATCH as u32, 2048)?;
    let mut batch = Batch::default();
    let samples = Samples::take(report.runs(), || {
        let before = StageCounts::read(&engine);
        for n in 0..BATCHES * BATCH {
            let (packet, port) = world.incoming(Step { flow: (n % BATCH) as u32, reply: false, flags: 0 });
            let mut frame = pool.alloc().expect("freed below");
            let IpAddr::V4(address) = packet.src.0 else { anyhow::bail!("ARP is of IPv4") };
            let bytes = request(packet.src_mac, address.octets());
            anyhow::ensure!(frame.resize(bytes.len()), "a frame without room");
            frame.bytes_mut().copy_from_slice(&bytes);
            batch.push(frame, port);
            if batch.room() > 0 {
                continue;
            }
            engine.run(&mut batch, Now::read());
            engine.quiescent();
            for (frame, meta) in batch.frames.drain(..).zip(batch.meta.drain(..)) {
                anyhow::ensure!(
                    meta.verdict == Verdict::Reply && is_answer(frame.bytes()),
                    "an ARP request was not answered: {meta:?}"
                );
                pool.free(frame);
            }
        }
        let stages = StageCounts::read(&engine).since(&before);
        let mut reply = stages.filter(|(name, _)| name == "path/stages/reply");
        Ok(reply.next().map_or(f64::NAN, |(_, cycles)| cycles))
    })?;
    report.add("path/stages/reply", &samples);
    Ok(())
}

fn request(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let ethernet = Ethernet2Header { source: mac, destination: [0xff; 6], ether_type: EtherType::ARP };
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: address,
        target_mac: [0; 6],
        target_ipv4: LINK_GATEWAY_V4,
    };
    [&ethernet.to_bytes()[..], &arp.to_bytes()[..]].concat()
}

fn is_answer(bytes: &[u8]) -> bool {
    use etherparse::NetSlice;
    let Ok(SlicedPacket { net: Some(NetSlice::Arp(arp)), .. }) = SlicedPacket::from_ethernet(bytes) else {
        return false;
    };
    arp.operation() == ArpOperation::REPLY
        && arp.sender_hw_addr() == GATEWAY_MAC
        && arp.sender_protocol_addr() == LINK_GATEWAY_V4
}
