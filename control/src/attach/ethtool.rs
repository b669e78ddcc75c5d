//! Offloads of an interface, by the one interface that old and new kernels share: the `SIOCETHTOOL` ioctl
//! (linux/ethtool.h).
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd};

use rustix::net::{AddressFamily, SocketType};

/// Commands that set one offload of `struct ethtool_value`, each with what it stands for.
const OFFLOADS: [(u32, &str); 5] = [
    (0x17, "tx-checksumming"),
    (0x1f, "tcp-segmentation-offload"),
    (0x24, "generic-segmentation-offload"),
    (0x19, "scatter-gather"),
    (0x2c, "generic-receive-offload"),
];

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches everything off that makes the kernel hand on a packet in a form that no wire carries: with its checksum
/// still to be filled in, or many packets in one.
pub(super) fn switch_offloads_off(interface: &str) -> Result<(), (&'static str, io::Error)> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    let socket = socket.map_err(|error| ("socket", error.into()))?;
    for (command, name) in OFFLOADS {
        set(&socket, interface, command, 0).map_err(|error| (name, error))?;
    }
    Ok(())
}

fn set(socket: &impl AsRawFd, interface: &str, command: u32, data: u32) -> io::Result<()> {
    let mut value = EthtoolValue { command, data };
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if interface.len() >= ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, &from) in ifr_name.iter_mut().zip(interface.as_bytes()) {
        *to = from.cast_signed();
    }
    let mut request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    // SAFETY: the ioctl reads a `struct ifreq` with the name of an interface, ended by the zero that is left at its end,
    // and reads and writes the `struct ethtool_value` that it points to; both outlive the call. There is no safe wrapper.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
