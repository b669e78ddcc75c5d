//! The control process of Wirelane: Kubernetes objects in, dataplane tables out.
//!
//! What comes in passes through these, in order:
//!
//! | module | does |
//! |---|---|
//! | [`source`] | objects from Kubernetes or a directory of manifests, validated into [`model`] types at the rim |
//! | [`state`] | what the cluster wants: all objects, and who holds which address |
//! | [`compile`] | from state to the dataplane's table objects: pure |
//! | [`push`] | the difference to the dataplane, one transaction after another |
//!
//! [`reconcile`] is the loop over the first three, with [`pools`], which gives load balancers their addresses. Beside them,
//! [`attach`] makes the links of pods for [`cni`] and others, with addresses from [`ipam`], [`rpc`] answers on the control socket,
//! [`health`] answers load balancers, [`config`] reads the configuration, and [`problem`] holds what any of them had to refuse.
//! Where there is an [`api`] server, [`publish`] writes back to it.

pub mod api;
pub mod attach;
pub mod cleanup;
pub mod cni;
pub mod compile;
pub mod config;
mod durable;
mod election;
mod hash;
pub mod health;
pub mod ipam;
pub mod model;
pub mod pools;
pub mod problem;
pub mod proposal;
pub mod publish;
pub mod push;
pub mod reconcile;
pub mod rpc;
pub mod source;
pub mod state;
