//! Privileges, given up once they have served.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// Links, routes and XDP programs; AF_XDP sockets; loading programs and maps. All for pods to come.
///
/// What takes more is done by then: registering memory (CAP_IPC_LOCK, where its limit is low), and the uplink's
/// program and a look at whose programs there are already (CAP_SYS_ADMIN).
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::BPF);

/// Keeps only what attaching pods needs, for good. Capabilities are a thread's: to be called before there are
/// others, which get what their maker has.
pub fn drop_privileges() -> io::Result<()> {
    set_no_new_privs(true)?;
    let now = capabilities(None)?;
    // For what is executed one day, which is nothing; a kernel that does not let us is no worse off.
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let kept = now.permitted & KEPT;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}
