//! Every figure that the report knows, in the order in which it is printed. The names do not change.

/// What a figure is called and measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The figure of the same report that it is set in proportion to.
    pub against: Option<&'static str>,
}

const fn entry(name: &'static str, unit: &'static str) -> Entry {
    Entry { name, unit, against: None }
}

impl Entry {
    const fn against(self, name: &'static str) -> Entry {
        Entry { against: Some(name), ..self }
    }
}

/// The figures.
pub const ENTRIES: &[Entry] = &[
    entry("limit/dram_line", "ns"),
    entry("path/established/plain/64k", "ns per packet").against("limit/dram_line"),
    entry("path/established/plain/1m", "ns per packet").against("limit/dram_line"),
    entry("path/established/plain/16m", "ns per packet").against("limit/dram_line"),
    entry("path/established/plain/1m/v6", "ns per packet").against("limit/dram_line"),
    entry("path/established/vxlan/64k", "ns per packet").against("limit/dram_line"),
    entry("path/established/vxlan/1m", "ns per packet").against("limit/dram_line"),
    entry("path/established/vxlan/1m/zipf", "ns per packet").against("limit/dram_line"),
    entry("path/established/vxlan/16m", "ns per packet").against("limit/dram_line"),
    entry("path/stages/parse", "cycles per packet"),
    entry("path/stages/decap", "cycles per packet"),
    entry("path/stages/conntrack", "cycles per packet"),
    entry("path/stages/service", "cycles per packet"),
    entry("path/stages/policy", "cycles per packet"),
    entry("path/stages/fragment", "cycles per packet"),
    entry("path/stages/forward", "cycles per packet"),
    entry("path/stages/reply", "cycles per packet"),
    entry("path/mixed/vxlan/1m/1", "ns per packet").against("path/established/vxlan/1m"),
    entry("path/mixed/vxlan/1m/10", "ns per packet").against("path/established/vxlan/1m"),
    entry("path/mixed/vxlan/1m/100", "ns per packet").against("path/established/vxlan/1m"),
    entry("path/flood/calm", "ns per packet"),
    entry("path/flood/established", "ns per packet").against("path/flood/calm"),
    entry("path/churn/quiet", "ns per packet"),
    entry("path/churn/pods", "ns per packet").against("path/churn/quiet"),
    entry("path/churn/routes", "ns per packet").against("path/churn/quiet"),
    entry("path/new_flow", "ns per flow"),
    entry("path/lifecycle", "connections/s"),
    entry("path/services/established/10", "ns per packet"),
    entry("path/services/established/100k", "ns per packet").against("path/services/established/10"),
    entry("path/services/new_flow/10", "ns per flow"),
    entry("path/services/new_flow/100k", "ns per flow").against("path/services/new_flow/10"),
    entry("path/allocations", "per packet"),
    entry("peer/rte_hash_hit/1m", "ns per lookup"),
    entry("peer/rte_hash_miss/1m", "ns per lookup"),
    entry("flows/hit/1m", "ns per lookup").against("peer/rte_hash_hit/1m"),
    entry("flows/miss/1m", "ns per lookup").against("peer/rte_hash_miss/1m"),
    entry("flows/hit/1m/alone", "ns per lookup").against("peer/rte_hash_hit/1m"),
    entry("flows/miss/1m/alone", "ns per lookup").against("peer/rte_hash_miss/1m"),
    entry("flows/bytes_per_flow", "bytes"),
    entry("scale/2_workers", "ratio"),
    entry("tables/update/p99", "us"),
    entry("tables/cold_load/1m", "s"),
    entry("tables/stall/quiet", "us"),
    entry("tables/stall/max", "us").against("tables/stall/quiet"),
    entry("tables/maglev/65537x1000", "ms"),
    entry("policy/verdict/10", "ns"),
    entry("policy/verdict/1k", "ns").against("policy/verdict/10"),
    entry("policy/verdict/100k", "ns").against("policy/verdict/10"),
    entry("policy/verdict/10/100k_identities", "ns").against("policy/verdict/100k"),
    entry("policy/compile/100k", "s"),
    entry("policy/update/policy/100k", "us"),
    entry("policy/update/pod/100k", "us"),
    entry("policy/update/selection/100k", "us"),
    entry("policy/memory/10k_pods_1k_policies", "MiB"),
    entry("policy/control/compile/100k", "s"),
    entry("policy/control/update/policy/100k", "us"),
    entry("policy/control/update/pod/100k", "us"),
    entry("kube/cold_start/100k_pods", "s"),
    entry("kube/memory/100k_pods", "MiB"),
    entry("kube/change/100k_pods", "ms"),
    entry("veth/testpmd/pps", "packets/s"),
    entry("veth/kernel/pps", "packets/s"),
    entry("veth/wirelane/pps", "packets/s").against("veth/testpmd/pps"),
    entry("veth/latency/p50", "us"),
    entry("veth/latency/p99", "us"),
    entry("idle/cpu", "% of one core"),
];

/// The entry of this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::groups::GROUPS;

    #[test]
    fn names_are_unique_and_proportions_lead_to_figures() {
        let names: HashSet<_> = ENTRIES.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), ENTRIES.len());
        for entry in ENTRIES {
            assert!(entry.against.is_none_or(|against| names.contains(against)), "{entry:?}");
        }
    }

    #[test]
    fn every_figure_is_measured_by_one_group() {
        for entry in ENTRIES {
            let groups = GROUPS.iter().filter(|group| group.measures(entry.name)).count();
            assert_eq!(groups, 1, "{}", entry.name);
        }
    }

    #[test]
    fn every_stage_of_the_path_has_a_figure() {
        let stages: Vec<_> =
            ENTRIES.iter().filter_map(|entry| entry.name.strip_prefix("path/stages/")).collect();
        assert_eq!(stages, wirelane_dataplane::path::STAGES);
    }
}
