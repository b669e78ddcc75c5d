//! The real daemons between real kernels: whole clusters out of network namespaces, and what the project promises of
//! them.
//!
//! Every test builds a lab of its own ([`bed`]), for which it has to be root; `WIRELANE_SKIP_PRIVILEGED=1` leaves all
//! of them out. The daemons are the ones beside the test binary, which `cargo test --workspace` builds; with
//! `-p wirelane-tests` alone they are as old as their last build.

mod bed;
mod ends;
mod objects;
mod probe;
mod raw;

mod announced;
mod away;
mod bandwidth;
mod changes;
mod direct;
mod endings;
mod explained;
mod fragments;
mod hostile;
mod kills;
mod labs;
mod manifests;
mod network;
mod node;
mod paths;
mod policies;
mod restarts;
mod services;
mod tunnels;
mod whatif;
