//! What each stage of the path has taken between two looks.

use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::path::STAGES;

/// Packets and cycles by stage, so far.
#[derive(Clone, Copy, Debug)]
pub struct StageCounts([(u64, u64); STAGES.len()]);

impl StageCounts {
    /// Of a worker.
    pub fn read(engine: &Engine) -> StageCounts {
        let stages = &engine.stats().stages;
        StageCounts(std::array::from_fn(|n| (stages[n].packets.read(), stages[n].cycles.read())))
    }

    /// Cycles for each packet that the stage has seen since `earlier`, with the figure's name; stages that have
    /// seen none are left out.
    pub fn since(&self, earlier: &StageCounts) -> impl Iterator<Item = (String, f64)> + use<> {
        let (now, then) = (self.0, earlier.0);
        (0..STAGES.len()).filter_map(move |n| {
            let (packets, cycles) = (now[n].0 - then[n].0, now[n].1 - then[n].1);
            (packets > 0).then(|| (format!("path/stages/{}", STAGES[n]), cycles as f64 / packets as f64))
        })
    }
}
