//! The packet path of Wirelane.
//!
//! Begin with [`path`]: it lists the stages that a packet goes through. `dataplane/README.md` tells the life
//! of a packet. Dependencies point one way: [`wire`], [`tables`], [`stages`], [`path`], [`engine`], and then
//! what brings packets and tables to it.

pub mod batch;
pub mod clock;
#[cfg(feature = "af-xdp")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod dataplane;
pub mod endings;
pub mod engine;
pub mod explain;
#[cfg(feature = "daemon")]
pub mod housekeeper;
pub mod io;
#[cfg(feature = "daemon")]
pub mod kernel;
#[cfg(feature = "daemon")]
mod latency;
pub mod path;
#[cfg(feature = "daemon")]
pub mod persist;
#[cfg(feature = "daemon")]
pub mod ports;
mod prefetch;
pub mod rcu;
pub mod rehearsal;
#[cfg(feature = "daemon")]
pub mod rpc;
pub mod stages;
pub mod stats;
mod sync;
pub mod tables;
pub mod verdict;
pub mod whatif;
pub mod wire;
pub mod worker;
