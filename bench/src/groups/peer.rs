//! DPDK's rte_hash: the same keys in the same order as of `flows/hit` and `flows/miss`, in the same run.

use wirelane_dataplane::batch::Key;

use crate::groups::Group;
use crate::groups::flows;
use crate::peers::{self, HashLoad};
use crate::report::Report;

pub(super) const GROUP: Group = Group { prefixes: &["peer/rte_hash_"], run };

const NAMES: [&str; 2] = ["peer/rte_hash_hit/1m", "peer/rte_hash_miss/1m"];
/// What a table for that many keys has in huge pages where there are any.
const HUGE_KIB: u64 = 128 << 10;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let stored: Vec<_> = flows::stored().map(bytes).collect();
    let hits: Vec<_> = flows::present().map(bytes).collect();
    let misses: Vec<_> = flows::absent().map(bytes).collect();
    let load = HashLoad { stored: &stored, hits: &hits, misses: &misses };
    match peers::rte_hash(&load, report.runs()) {
        Ok(times) => {
            if times.huge_kib < HUGE_KIB {
                report.warn("peer/rte_hash is measured without huge pages: the kernel gave none".into());
            }
            report.add(NAMES[0], &times.hit);
            report.add(NAMES[1], &times.miss);
        }
        Err(error) => NAMES.iter().for_each(|name| report.skip(name, format!("{error:#}"))),
    }
    Ok(())
}

/// Addresses, ports, protocol, and zeros.
fn bytes(key: Key) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&key.src.last4());
    bytes[4..8].copy_from_slice(&key.dst.last4());
    bytes[8..10].copy_from_slice(&key.sport.to_ne_bytes());
    bytes[10..12].copy_from_slice(&key.dport.to_ne_bytes());
    bytes[12] = key.proto;
    bytes
}
