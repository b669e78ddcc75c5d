//! The stages of the path, one file each; `path.rs` has their order.

pub mod conntrack;
pub mod cut;
pub mod decap;
mod discovery;
pub mod forward;
pub mod fragment;
pub mod hop;
pub mod masquerade;
pub mod mss;
pub mod parse;
pub mod policy;
pub(crate) mod quick;
pub mod reply;
pub mod service;
