//! What the dataplane has besides its tables: the sockets of its ports, and what the node's kernel is told.

#[cfg(feature = "af-xdp")]
pub mod af_xdp;

use std::error::Error;
use std::io;

use crate::batch::PortId;
#[cfg(feature = "af-xdp")]
use crate::io::xsk::XskError;
use crate::kernel::KernelError;
use crate::kernel::host_link::HostRoutes;
use crate::tables::Steering;
use crate::worker::WorkerDied;

/// Opens and closes the ports of all workers: AF_XDP sockets in production, nothing in tests.
///
/// Calls may wait for the kernel and for workers; they are not for an async runtime's threads.
pub trait Ports: Send + Sync + 'static {
    /// Opens an interface as port `id` on every worker, or on none. Its frames come in from then on.
    ///
    /// # Errors
    /// When the interface is not there, does not fit, or the kernel refuses.
    fn open(&self, id: PortId, interface: &str) -> Result<Opened, PortError>;

    /// Whether the interface that port `id` was opened on is still there: another one may have its name.
    fn is_there(&self, id: PortId) -> bool;

    /// Closes a port on every worker. Its interface may be gone.
    fn close(&self, id: PortId);

    /// How an open port gets its frames, in words: "native" or "generic", and "zero-copy" or "copy".
    fn mode(&self, id: PortId) -> String;

    /// Tells the kernel what of the uplink's traffic is ours, and what it is to send through the host's port.
    ///
    /// # Errors
    /// When the kernel refuses a part of it; the next call tries again.
    fn steer(&self, steering: &Steering, routes: &HostRoutes) -> Result<(), PortError>;

    /// Sends a frame out of an open port, as it is, though no worker has it.
    ///
    /// # Errors
    /// When the kernel does not take it, or the port is not open.
    fn send(&self, id: PortId, frame: &[u8]) -> io::Result<()>;
}

/// What is known of an interface once it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The largest IP packet that it carries.
    pub mtu: u16,
}

/// Why a port is not open, or the kernel not told.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is no memory, or no socket.
    #[cfg(feature = "af-xdp")]
    #[error(transparent)]
    Socket(#[from] XskError),
    /// A worker has panicked.
    #[error(transparent)]
    Worker(#[from] WorkerDied),
    /// No thread could be started.
    #[error("cannot start a worker, or the announcer")]
    Start(#[source] std::io::Error),
    /// The interface is there, and not as it has to be.
    #[error("interface {interface}: {problem}")]
    Unfit {
        /// Its name.
        interface: String,
        /// What is wrong with it, and what to do about it.
        problem: String,
    },
}

/// An error and what caused it, in one line: for logs and answers.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
