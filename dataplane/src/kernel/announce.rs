//! Tells the uplink's link which addresses of Services are here.
//!
//! Questions for them are answered by the workers ([`crate::stages::parse`]). But who has asked another node before goes
//! on with its answer, until somebody says otherwise: by gratuitous ARP (RFC 5227, 3) and unsolicited neighbour
//! advertisements (RFC 4861, 7.2.6), when this node becomes the one to answer, and a few times more, since either may
//! be lost. A thread of its own does that: it waits.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::links::Link;
use super::raw_socket::RawSocket;
use crate::wire::arp::Arp;
use crate::wire::checksum;
use crate::wire::ethernet::{self, BROADCAST, Ethernet, Mac};
use crate::wire::icmp::{self, ALL_NODES, Icmp, Neighbour};
use crate::wire::ipv6::Ipv6;
use crate::wire::proto;

/// How often an address is announced, and at what distance.
const TIMES: u32 = 5;
const DISTANCE: Duration = Duration::from_secs(1);

/// The thread that announces. It ends when this is dropped.
#[derive(Debug)]
pub struct Announcer {
    /// `None` only while it is being dropped.
    addresses: Option<Sender<BTreeSet<IpAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    /// Starts it for the link of `uplink`, in the network namespace of the calling thread. Takes CAP_NET_RAW.
    ///
    /// # Errors
    /// When there is no packet socket, or no thread, to be had.
    pub fn start(uplink: &Link) -> io::Result<Announcer> {
        let socket = RawSocket::open(uplink.index)?;
        let (addresses, wanted) = unbounded();
        let announcing = Announcing { socket, mac: uplink.mac, times: BTreeMap::new() };
        let thread =
            std::thread::Builder::new().name("announcer".into()).spawn(move || announcing.run(&wanted))?;
        Ok(Announcer { addresses: Some(addresses), thread: Some(thread) })
    }

    /// These addresses are here, and no others. Those that were not before are announced.
    pub fn announce(&self, addresses: BTreeSet<IpAddr>) {
        if let Some(sender) = &self.addresses {
            // It fails only if the thread has panicked, which ends the process.
            let _ = sender.send(addresses);
        }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.addresses = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Announcing {
    socket: RawSocket,
    mac: Mac,
    /// How often each address has still to be announced.
    times: BTreeMap<IpAddr, u32>,
}

impl Announcing {
    fn run(mut self, wanted: &Receiver<BTreeSet<IpAddr>>) {
        let mut next = Instant::now();
        loop {
            let result = if self.times.values().any(|times| *times > 0) {
                wanted.recv_deadline(next)
            } else {
                wanted.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match result {
                // Those that are new are announced at once, without the others' being announced out of turn.
                Ok(addresses) => self.change(&addresses),
                Err(RecvTimeoutError::Timeout) => {
                    let due = self.times.iter().filter(|(_, times)| **times > 0);
                    due.map(|(address, _)| *address)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .for_each(|a| self.send(a));
                    next = Instant::now() + DISTANCE;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn change(&mut self, addresses: &BTreeSet<IpAddr>) {
        let gone: Vec<IpAddr> =
            self.times.keys().filter(|address| !addresses.contains(address)).copied().collect();
        for address in gone {
            self.times.remove(&address);
            self.listen(address, false);
        }
        for address in addresses {
            if !self.times.contains_key(address) {
                tracing::info!(%address, "announced on the uplink");
                self.times.insert(*address, TIMES);
                self.listen(*address, true);
                self.send(*address);
            }
        }
    }

    /// Announces an address once.
    fn send(&mut self, address: IpAddr) {
        if let Err(error) = self.socket.send(&announcement(address, self.mac)) {
            tracing::warn!(%address, %error, "announcement not sent");
        }
        if let Some(times) = self.times.get_mut(&address) {
            *times -= 1;
        }
    }

    /// Has the interface receive, or no longer receive, the questions for an address: those of IPv6 go to a group.
    fn listen(&self, address: IpAddr, whether: bool) {
        let IpAddr::V6(address) = address else { return };
        if let Err(error) = self.socket.listen(solicited_node(address), whether) {
            tracing::warn!(%address, %error, "questions for it may not be received");
        }
    }
}

/// The frame that tells everybody on a link that the address is at `mac`.
pub fn announcement(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let arp = Arp::announcement(mac, address.octets());
            let header = Ethernet::new(BROADCAST, mac, ethernet::ARP);
            [bytemuck::bytes_of(&header), bytemuck::bytes_of(&arp)].concat()
        }
        IpAddr::V6(address) => {
            let target = address.octets();
            let mut message = Neighbour {
                icmp: Icmp {
                    kind: icmp::v6::NEIGHBOUR_ADVERTISEMENT,
                    code: 0,
                    checksum: [0; 2],
                    rest: [icmp::OVERRIDE, 0, 0, 0],
                },
                target,
                option: icmp::OPTION_TARGET,
                option_len: 1,
                mac,
            };
            let sum = checksum::transport(&target, &ALL_NODES, proto::ICMPV6, bytemuck::bytes_of(&message));
            message.icmp.checksum = sum.to_be_bytes();
            let ip = Ipv6::new(target, ALL_NODES, proto::ICMPV6, size_of::<Neighbour>() as u16, 255);
            let header = Ethernet::new(ethernet::group_of(&ALL_NODES), mac, ethernet::IPV6);
            let parts = [bytemuck::bytes_of(&header), bytemuck::bytes_of(&ip), bytemuck::bytes_of(&message)];
            parts.concat()
        }
    }
}

/// The MAC address of the group that questions for an address go to (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Mac {
    let [.., a, b, c] = address.octets();
    ethernet::group_of(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::wire::arp;

    #[test]
    fn announcements_are_well_formed() {
        const MAC: Mac = [2, 0, 0, 0, 0, 1];
        let frame = announcement("192.0.2.80".parse().unwrap(), MAC);
        let Some(NetSlice::Arp(arp)) = SlicedPacket::from_ethernet(&frame).unwrap().net else { panic!() };
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&MAC[..], &[192, 0, 2, 80][..]));
        assert_eq!((arp.operation().0, arp.target_protocol_addr()), (arp::REQUEST, &[192, 0, 2, 80][..]));

        let address: Ipv6Addr = "2001:db8::80".parse().unwrap();
        let frame = announcement(address.into(), MAC);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!() };
        assert_eq!((ip.header().hop_limit(), ip.header().source()), (255, address.octets()));
        let Some(TransportSlice::Icmpv6(message)) = packet.transport else { panic!() };
        assert!(message.is_checksum_valid(ip.header().source(), ip.header().destination()));
        assert_eq!((message.type_u8(), message.bytes5to8()), (136, [0x20, 0, 0, 0]));
        assert_eq!(message.payload()[..16], address.octets());
        assert_eq!(message.payload()[16..], [[2, 1].as_slice(), &MAC].concat());
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(solicited_node(address), [0x33, 0x33, 0xff, 0, 0, 0x80]);
    }
}
