//! Whole connections, from SYN to expiry.

use wirelane_dataplane::wire::tcp::{ACK, FIN, SYN};

use crate::groups::Group;
use crate::lane::{Lane, Timed};
use crate::measure::Samples;
use crate::report::Report;
use crate::world::{Step, Topology, World};
use wirelane_dataplane::clock::cycles;

pub(super) const GROUP: Group = Group { prefixes: &["path/lifecycle"], run };

/// Connections of one run, all at once.
const CONNECTIONS: u32 = 32_768;
/// What one connection sends, as (from the backend, TCP flags).
const PACKETS: [(bool, u8); 7] = [
    (false, SYN),
    (true, SYN | ACK),
    (false, ACK),
    (false, ACK),
    (true, ACK),
    (false, FIN | ACK),
    (true, FIN | ACK),
];
/// Longer than a closed connection is kept.
const FORGOTTEN: u32 = 200_000;

fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut carrier = Lives::new(CONNECTIONS)?;
    carrier.wave()?;
    let samples = Samples::take(report.runs(), || {
        let timed = carrier.wave()?;
        let connections = timed.packets as f64 / PACKETS.len() as f64;
        Ok(connections * 1e9 / report.tsc.nanoseconds(timed.cycles))
    })?;
    report.add("path/lifecycle", &samples);
    Ok(())
}

/// A world of connections that come and go, all at once; its table has room for two times as many.
#[derive(Debug)]
pub struct Lives {
    world: World,
    lane: Lane,
}

impl Lives {
    /// So many, none of which has begun.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(connections: u32) -> anyhow::Result<Lives> {
        let world = World::new(Topology::Vxlan, connections, connections * 2, 1)?;
        let lane = Lane::new(&world, 0, connections)?;
        Ok(Lives { world, lane })
    }

    /// One life of every connection, packet by packet. Timed are the packets, and the sweep through the table
    /// that ends the flows.
    ///
    /// # Errors
    /// What is wrong with a packet that came out.
    pub fn wave(&mut self) -> anyhow::Result<Timed> {
        let flows = self.world.flows();
        let mut total = Timed::default();
        for (n, (reply, flags)) in PACKETS.into_iter().enumerate() {
            self.lane.lay_out(&self.world, (0..flows).map(|flow| Step { flow, reply, flags }))?;
            total += self.lane.carry();
            if n == 0 {
                self.lane.check_first(&mut self.world)?;
            } else {
                self.lane.check(&self.world)?;
            }
        }
        self.lane.advance(FORGOTTEN);
        let start = cycles();
        let ended = self.lane.sweep();
        total.cycles += cycles().wrapping_sub(start);
        anyhow::ensure!(ended == flows as usize, "{ended} of {flows} connections have expired");
        Ok(total)
    }
}
