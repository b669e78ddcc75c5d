//! What the benchmarks of Wirelane have in common: the report's figures and the fixtures of both the report
//! (`src/bin/report.rs`) and the criterion benches (`benches/`).
//!
//! [`registry`] lists every figure that there is; [`groups`] measures them, a file for each group.
//! [`world`] is the cluster that packets travel through, [`lane`] one worker's way through it over memory; [`manifests`] is
//! a large cluster for the control process.

pub mod allocations;
pub mod document;
pub mod groups;
pub mod lane;
pub mod lines;
pub mod live;
pub mod load;
pub mod machine;
pub mod manifests;
pub mod measure;
pub mod packets;
pub mod peers;
pub mod plots;
pub mod registry;
pub mod report;
pub mod stages;
pub mod world;
