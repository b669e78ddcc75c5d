//! The far end of a link, in the kernel: a packet socket that sends frames as they are and hears all that come.
#![allow(unsafe_code, reason = "rustix has no link-layer addresses and no options of packet sockets")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Opens one in the network namespace of the calling thread.
    pub fn open(interface: &str) -> io::Result<Tap> {
        let any = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let index = netdevice::name_to_index(&any, interface)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it hears nothing before it is bound to the one interface.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let on: libc::c_int = 1;
        // SAFETY: the option's value is an int that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::net::bind(&socket, &Link { index })?;
        Ok(Tap(socket))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = rustix::net::send(&self.0, frame, SendFlags::empty())?;
        assert_eq!(sent, frame.len());
        Ok(())
    }

    /// The next frame that has come, if one has.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 4096];
        let (len, _) = rustix::net::recv(&self.0, &mut frame[..], RecvFlags::empty()).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    /// Whether nothing waits to be received.
    pub fn is_silent(&self) -> bool {
        let mut byte = [0; 1];
        rustix::net::recv(&self.0, &mut byte[..], RecvFlags::PEEK).is_err()
    }

    /// Waits until one of them has a frame.
    pub fn wait(taps: &[Tap], timeout: Duration) {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut fds: Vec<PollFd<'_>> = taps.iter().map(|tap| PollFd::new(&tap.0, PollFlags::IN)).collect();
        let _ = poll(&mut fds, Some(&timeout));
    }
}

/// The address of an interface, for packet sockets: all protocols.
struct Link {
    index: u32,
}

// SAFETY: the address handed on is a whole `sockaddr_ll` on the stack, which outlives the call, and its length is
// that of the type.
unsafe impl SocketAddrArg for Link {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: self.index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        f((&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    }
}
