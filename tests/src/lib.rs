//! What the tests of Wirelane stand on: packets that are easy to write and to check ([`packet`], [`check`]), a
//! small cluster ([`cluster`]), datagrams in pieces ([`fragments`]), a node over memory ports that takes packets in
//! and says what became of them ([`node`]), and such a node among others that Kubernetes manifests describe
//! ([`manifests`], [`scene`]). What policies mean is said once more, slowly, in [`verdicts`].

pub mod check;
pub mod churn;
pub mod cluster;
pub mod fragments;
pub mod manifests;
pub mod node;
pub mod packet;
pub mod random;
pub mod scene;
pub mod stage;
pub mod verdicts;

/// Whether this test can run. One that cannot fails, unless it is told to be skipped.
pub fn privileged() -> bool {
    if std::env::var_os("WIRELANE_SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        eprintln!("skipped: WIRELANE_SKIP_PRIVILEGED=1");
        return false;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces and AF_XDP sockets: run it as root, or set WIRELANE_SKIP_PRIVILEGED=1"
    );
    true
}
