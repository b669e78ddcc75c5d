//! The few ethtool requests that there is no netlink attribute for. ABI: `linux/ethtool.h`, `linux/sockios.h`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// A legacy feature switch (`ETHTOOL_S...`), each of which stands for a group of features.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Feature {
    /// Leaving checksums to the hardware.
    TransmitChecksum = 0x17,
    /// Leaving segmentation to the hardware.
    TransmitSegmentation = 0x1f,
    /// Segmentation late in the stack.
    GenericSegmentation = 0x24,
}

/// Switches a feature off; one that the interface does not have, or may not switch, stays as it is.
pub fn switch_off(interface: &str, feature: Feature) -> io::Result<()> {
    let mut value = [feature as u32, 0];
    match request(interface, &mut value) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// How many receive queues the interface uses, or `None` if its driver does not say.
pub fn receive_queues(interface: &str) -> Option<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    /// Places in `struct ethtool_channels`.
    const RX_COUNT: usize = 5;
    const COMBINED_COUNT: usize = 8;
    let mut channels = [0; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    request(interface, &mut channels).ok()?;
    Some(channels[RX_COUNT] + channels[COMBINED_COUNT]).filter(|queues| *queues > 0)
}

/// One `SIOCETHTOOL` call. `words` is the request's structure, its command first; the kernel writes into it.
fn request<const N: usize>(interface: &str, words: &mut [u32; N]) -> io::Result<()> {
    let name = interface.as_bytes();
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let socket: OwnedFd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let mut ifr = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: words.as_mut_ptr().cast() },
    };
    // SAFETY: `ifr` is what SIOCETHTOOL takes, and its data pointer holds as many words as the kernel's
    // structure for the command has: two for a switch, nine for the channels. There is no safe wrapper.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifr) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
