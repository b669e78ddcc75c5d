//! Where objects come from: one suite for all sources, over a folder, over an API server in the test that can misbehave, and
//! over a real one where `WIRELANE_KUBECONFIG` names its kubeconfig.

mod followed;
mod places;
mod suite;
mod troubles;
