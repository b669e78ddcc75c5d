//! The CNI plugin: called as runtimes call it, and by a real one.
//!
//! Every test has a node of its own ([`node`]) with the real daemons; `WIRELANE_SKIP_PRIVILEGED=1` leaves all of them out.
//! The programs are the ones beside the test binary: build them first (`cargo build`).

mod node;

mod bandwidth;
mod containerd;
mod cri;
mod plugin;
mod pods;
mod restarts;
