//! Who may reach whom: small clusters with policies ([`world`]), as [`manifests`], at [`random`], and a naive [`model`] of what
//! the policies mean; [`packets`] that ask, and [`churn`] beneath them.

pub mod churn;
pub mod manifests;
pub mod model;
pub mod packets;
pub mod random;
pub mod world;
