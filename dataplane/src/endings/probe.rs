//! How an idle end of a connection is told that the connection is over.
//!
//! A reset counts only with the right sequence number (RFC 9293, 3.10.7.4), and nobody here keeps those. So the end is
//! sent a segment that is none of the connection's: an ACK somewhere in the sequence space. To what is out of its window
//! it answers with an ACK that says where it stands (RFC 9293, 3.10.7.4; RFC 5961, 5), and that comes here, as a packet
//! of a flow whose backend is gone, and gets the reset with the number that it has itself named.
//!
//! The window is a small part of the space, so the segment is nearly always outside; where it is not it changes
//! nothing, and the next one is elsewhere.

use crate::batch::{Key, Meta, PortId, flags};
use crate::clock::Now;
use crate::engine::{Onlooker, Shared};
use crate::io::frame::FramePool;
use crate::stages::{forward, hop};
use crate::wire::ethernet::HEADER_LEN;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp};
use crate::wire::{checksum, proto};
use std::io;
use std::sync::Arc;

/// Makes the segments.
#[derive(Debug)]
pub struct Prober {
    onlooker: Onlooker,
    pool: FramePool,
}

/// As those of answers.
const TTL: u8 = 64;

impl Prober {
    /// For the connections that pass through these workers.
    ///
    /// # Errors
    /// When there is no memory for a frame.
    pub fn new(shared: Arc<Shared>) -> io::Result<Prober> {
        Ok(Prober { onlooker: Onlooker::new(shared), pool: FramePool::in_memory(2, 2048)? })
    }

    /// The frame that asks the end that packets of this key come from where it stands, and the port that leads there; `random`
    /// places it in the sequence space. `None` if nothing leads there now.
    pub fn probe(&mut self, end: &Key, random: u64, now: Now) -> Option<(PortId, Vec<u8>)> {
        let mut frame = self.pool.alloc()?;
        let made = self.onlooker.look(now, |cx| {
            let (v6, to) = (!end.src.is_v4(), end.reversed());
            let l4 = HEADER_LEN + if v6 { ipv6::HEADER_LEN } else { ipv4::MIN_LEN };
            if !frame.resize(l4 + tcp::MIN_LEN) {
                return None;
            }
            let bytes = frame.bytes_mut();
            let segment = segment(&to, random);
            bytes[l4..].copy_from_slice(bytemuck::bytes_of(&segment));
            if v6 {
                let header = Ipv6::new(to.src.0, to.dst.0, proto::TCP, tcp::MIN_LEN as u16, TTL);
                bytes[HEADER_LEN..l4].copy_from_slice(bytemuck::bytes_of(&header));
            } else {
                let len = (ipv4::MIN_LEN + tcp::MIN_LEN) as u16;
                let header = Ipv4::new(to.src.last4(), to.dst.last4(), proto::TCP, len, TTL);
                bytes[HEADER_LEN..l4].copy_from_slice(bytemuck::bytes_of(&header));
            }
            let next = hop::between(&to.src, &to.dst, cx).ok()?;
            let (port, _) = hop::port_and_mtu(next, cx).ok()?;
            let meta = Meta {
                key: to,
                flags: if v6 { flags::V6 } else { 0 },
                l3: HEADER_LEN as u16,
                l4: l4 as u16,
                ..Meta::default()
            };
            let hash = if v6 { cx.flows_v6.hash(&to) } else { cx.flows_v4.hash(&to) };
            forward::send(&mut frame, &meta, next, hash, cx).ok()?;
            Some((port, frame.bytes().to_vec()))
        });
        self.pool.free(frame);
        made
    }
}

fn segment(to: &Key, random: u64) -> Tcp {
    let mut segment = Tcp {
        sport: to.sport.to_be_bytes(),
        dport: to.dport.to_be_bytes(),
        seq: ((random >> 32) as u32).to_be_bytes(),
        ack: (random as u32).to_be_bytes(),
        data_offset: ((tcp::MIN_LEN / 4) << 4) as u8,
        flags: tcp::ACK,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    let bytes = bytemuck::bytes_of(&segment);
    let sum = match (to.src.is_v4(), &to.src, &to.dst) {
        (true, src, dst) => checksum::transport(&src.last4(), &dst.last4(), proto::TCP, bytes),
        (false, src, dst) => checksum::transport(&src.0, &dst.0, proto::TCP, bytes),
    };
    segment.checksum = sum.to_be_bytes();
    segment
}
