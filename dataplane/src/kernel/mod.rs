//! What we ask of the node's own kernel, over netlink and ethtool. No packet comes through here.
//!
//! Everything is synchronous: callers are threads that set ports up and take them down. An asynchronous caller
//! uses `spawn_blocking`. All of it happens in the network namespace of the thread that made the [`Netlink`].

pub mod announce;
mod ethtool;
pub mod host_link;
pub mod links;
pub mod loopback;
pub mod neighbours;
pub mod node_ports;
pub mod raw_socket;
#[cfg(feature = "af-xdp")]
pub mod steering;

use std::future::Future;
use std::io;

/// A connection to the kernel's routing netlink.
#[derive(Debug)]
pub struct Netlink {
    runtime: tokio::runtime::Runtime,
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Connects within the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn connect() -> Result<Netlink, KernelError> {
        let failed = |source| KernelError::Io { what: "connect to netlink".into(), source };
        // One thread, the caller's: it runs only while a request is under way.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let (connection, handle, _) = {
            let _entered = runtime.enter();
            rtnetlink::new_connection().map_err(failed)?
        };
        runtime.spawn(connection);
        Ok(Netlink { runtime, handle })
    }

    /// Runs one request, and says what it was for if it fails.
    fn ask<T>(
        &self,
        what: impl FnOnce() -> String,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, KernelError> {
        self.runtime.block_on(request).map_err(|source| KernelError::Netlink { what: what(), source })
    }
}

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Netlink refused.
    #[error("cannot {what}")]
    Netlink {
        /// What was asked.
        what: String,
        /// The answer.
        source: rtnetlink::Error,
    },
    /// A system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was asked.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// There is no interface of this name.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The interface is there, and not as it has to be; says how.
    #[error("interface {interface}: {problem}")]
    Unfit {
        /// Name of the interface.
        interface: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The steering program or its maps could not be loaded or changed.
    #[cfg(feature = "af-xdp")]
    #[error("cannot {what}")]
    Bpf {
        /// What was asked.
        what: String,
        /// The answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl KernelError {
    /// The error number of a netlink or system call, if it was one.
    fn errno(&self) -> Option<i32> {
        match self {
            KernelError::Netlink { source: rtnetlink::Error::NetlinkError(message), .. } => {
                message.code.map(|code| -code.get())
            }
            KernelError::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
