//! Frames that no worker sends: what the dataplane has to say without having received anything.
//!
//! A worker's sockets are its own. Whoever else has to send a frame (an announcement of an address, the end of a
//! connection) sends it through a packet socket of the interface, which is as good: such frames are few.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::wire::ethernet::Mac;

/// A packet socket of one interface that only sends.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    interface: Interface,
}

impl RawSocket {
    /// Opens one on the interface of this index, in the network namespace of the calling thread. Takes CAP_NET_RAW.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(index: u32) -> io::Result<RawSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it receives nothing.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let interface = Interface(index);
        rustix::net::bind(&socket, &interface)?;
        Ok(RawSocket { socket, interface })
    }

    /// Sends a frame, Ethernet header and all, as it is. Never blocks.
    ///
    /// # Errors
    /// When the kernel does not take it: the interface is gone or down, or too much waits to be sent.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, frame, SendFlags::empty())?;
        Ok(())
    }

    /// Has the interface receive what is sent to a group of MAC addresses, for whoever receives on it (nothing comes in
    /// here), or no longer. It ends with the socket.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen(&self, group: Mac, whether: bool) -> io::Result<()> {
        let mut request = libc::packet_mreq {
            mr_ifindex: self.interface.0 as i32,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: group.len() as u16,
            mr_address: [0; 8],
        };
        request.mr_address[..group.len()].copy_from_slice(&group);
        let option = if whether { libc::PACKET_ADD_MEMBERSHIP } else { libc::PACKET_DROP_MEMBERSHIP };
        // SAFETY: the option's value is a `packet_mreq` that outlives the call, and its length is that of the type.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const request).cast(),
                size_of::<libc::packet_mreq>() as u32,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The address of an interface, for packet sockets, by its index.
#[derive(Debug)]
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
