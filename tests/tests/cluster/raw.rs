//! Frames of any content, sent by an interface as they are: what a hostile pod with a packet socket can do.
#![allow(unsafe_code, reason = "rustix has no link-layer addresses")]

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, addr::SocketAddrArg, bind, netdevice, send,
        socket, socket_with,
    },
};
use wirelane::lab::Namespace;

/// A packet socket on `eth0` of a namespace.
#[derive(Debug)]
pub struct RawLink {
    socket: OwnedFd,
}

impl RawLink {
    pub fn open(namespace: &Namespace) -> RawLink {
        let opened = namespace.within(|| {
            let index =
                netdevice::name_to_index(&socket(AddressFamily::INET, SocketType::DGRAM, None)?, "eth0")?;
            // With no protocol it hears nothing, and so never fills up.
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &Link { index })?;
            Ok::<_, Errno>(socket)
        });
        RawLink { socket: opened.unwrap().expect("root may make a packet socket") }
    }

    /// Sends a frame. One that the kernel refuses (longer than the MTU, or shorter than a header) is not sent.
    pub fn send(&self, frame: &[u8]) {
        let _ = send(&self.socket, frame, SendFlags::empty());
    }
}

/// The address of an interface, for packet sockets.
struct Link {
    index: u32,
}

// SAFETY: the address handed on is a whole `sockaddr_ll` on the stack, which outlives the call, and its length is
// that of the type.
unsafe impl SocketAddrArg for Link {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const rustix::net::addr::SocketAddrOpaque, rustix::net::addr::SocketAddrLen) -> R,
    ) -> R {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: self.index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        f((&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    }
}
