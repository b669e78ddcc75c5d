//! What the `wirelane` command is made of, as a library for the demo and the tests:
//! [`Daemons`] asks the two daemons over their sockets, [`lab`] builds networks out of network namespaces, and
//! [`traffic`] is the far end of a connection, which says who it is and sends bytes that can be checked.

pub mod daemons;
pub mod lab;
pub mod traffic;

pub use daemons::Daemons;
