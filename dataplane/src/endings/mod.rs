//! The flows of backends that have ceased to serve, or are gone: found by a thread that is no worker, and ended by the
//! worker that carries their next packet.
//!
//! No packet of an established flow is asked what its backend is. After a revision that took a backend away, the flow
//! records are gone through once, in pieces, and the flows that cannot go on are made to look as if they had been judged
//! long ago ([`Tail::unsettle`]): the next packet's worker has them judged anew, as after a change of the policies, and finds
//! what has become of them ([`Tables::fate`]).
//!
//! Why no flow is missed: this begins after the revision has been published, so when no worker goes by an earlier one
//! any more. What a worker has committed, or judged, by an earlier one, is written by then and found here; what it commits
//! or judges meanwhile, it judges by this revision or a later one.
//!
//! [`Tail::unsettle`]: crate::tables::flows::line::Tail::unsettle

pub mod probe;

use std::ops::Range;

use crate::batch::Key;
use crate::engine::Shared;
use crate::tables::Tables;
use crate::tables::flows::line::{Family, Line};
use crate::tables::flows::state::seen;
use crate::tables::flows::{FlowRef, FlowTable};
use crate::tables::services::Id;
use crate::tables::standing::Fate;
use crate::wire::Addr;

/// Records that are gone through at once: publishers wait for no more than these.
const RECORDS: usize = 1024;

/// Has every flow that cannot go on by `tables` (published, and current) judged anew at its next packet.
///
/// Calls `between` after each piece, with the ends of TCP connections whose backend is gone that have not been told yet:
/// each as the key of the packets that come from there.
pub fn unsettle(shared: &Shared, tables: &Tables, mut between: impl FnMut(&[Key])) {
    let mut ends = Vec::new();
    for records in pieces(shared.flows_v4.used()) {
        shared.with_flows(|v4, _| unsettle_in(v4, records, tables, &mut ends));
        between(&ends);
        ends.clear();
    }
    for records in pieces(shared.flows_v6.used()) {
        shared.with_flows(|_, v6| unsettle_in(v6, records, tables, &mut ends));
        between(&ends);
        ends.clear();
    }
}

/// Backends that flows go to, with their addresses; some more than once.
pub fn backends_in_use(shared: &Shared) -> Vec<(Id, Addr)> {
    let mut backends = Vec::new();
    shared.with_flows(|v4, v6| {
        v4.for_each(|flow| backends.extend(backend_of(v4, flow)));
        v6.for_each(|flow| backends.extend(backend_of(v6, flow)));
    });
    backends.sort_unstable();
    backends.dedup();
    backends
}

fn pieces(records: usize) -> impl Iterator<Item = Range<usize>> {
    (0..records).step_by(RECORDS).map(move |first| first..records.min(first + RECORDS))
}

fn backend_of<F: Family>(table: &FlowTable<F>, flow: FlowRef) -> Option<(Id, Addr)> {
    let line = table.line(flow);
    let (port, backend) = line.tail().ids();
    (port != 0).then(|| (backend, line.rewrite().to.dst))
}

fn unsettle_in<F: Family>(table: &FlowTable<F>, records: Range<usize>, tables: &Tables, ends: &mut Vec<Key>) {
    let since = tables.flows_changed_in;
    table.for_each_in(records, |flow| {
        let (original, reply) = (table.line(flow), table.line(flow.reversed()));
        match tables.fate(&original.key(), original.tail().ids()) {
            Fate::GoesOn => {}
            // Its replies go on until another backend was chosen.
            Fate::Anew => original.tail().unsettle(since),
            Fate::Reset => {
                for line in [original, reply] {
                    line.tail().unsettle(since);
                    if line.tail().seen() & seen::RST == 0 {
                        ends.push(line.key());
                    }
                }
            }
        }
    });
}
