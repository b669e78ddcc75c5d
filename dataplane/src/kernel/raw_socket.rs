//! Frames that no worker sends: what the dataplane has to say without having received anything.
//!
//! A worker's sockets are its own. Whoever else has to send a frame (an announcement of an address, the end of a
//! connection) sends it through a packet socket of the interface, which is as good: such frames are few.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

/// A packet socket of one interface that only sends.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens one on the interface of this index, in the network namespace of the calling thread. Takes CAP_NET_RAW.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(index: u32) -> io::Result<RawSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it receives nothing.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &Interface(index))?;
        Ok(RawSocket(socket))
    }

    /// Sends a frame, Ethernet header and all, as it is. Never blocks.
    ///
    /// # Errors
    /// When the kernel does not take it: the interface is gone or down, or too much waits to be sent.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, frame, SendFlags::empty())?;
        Ok(())
    }
}

/// The address of an interface, for packet sockets, by its index.
struct Interface(u32);

// SAFETY: the address handed on is a whole `sockaddr_ll` on the stack, which outlives the call, and its length is
// that of the type. rustix has no address of this kind of its own.
unsafe impl SocketAddrArg for Interface {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: self.0 as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        f((&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    }
}
