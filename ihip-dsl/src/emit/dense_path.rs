//! How far dense attention reads the beginning of a prompt: as long as attending to every key takes less time than finding
//! out which ones to attend to.
//!
//! What either takes is estimated for each segment of the prompt from rates that were measured on one H200 (docs, "Tuning
//! notes"). On another GPU both sides change, and the rule hangs on their ratio alone.

use super::attend_tiles::AttendTiles;
use super::functions::Shape;
use super::program::Instructions;
use super::scan_prefill::Products;
use super::score::Score;
use crate::cost::{Part, StepExtent};
use crate::words::SEGMENT;
use crate::{KvType, LayerPlan, PrunedLayer};

/// Multiplications and additions a second of dense attention, and of attention to lists, whose keys are turned and split.
const PORTABLE: [f64; 2] = [265e12, 96e12];
const HOPPER: [f64; 2] = [434e12, 133e12];
/// Multiplications and additions a second of scans on tensor cores, beside which they load keys: with rows and keys as they
/// are, with keys that are turned, and with rows that take turns in shared memory.
const SCANNED: f64 = 480e12;
const TURNED: f64 = 230e12;
const IN_TURNS: f64 = 190e12;
/// Bytes a second that these load.
const LOADED: f64 = 5.5e12;
/// Bytes a second that other scans load for 16 rows of averaged queries at a time.
const PLAIN: f64 = 0.45e12;

/// Seconds of a prompt's segment, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Attending to every key.
    pub dense: f64,
    /// Scanning, and attending to lists.
    pub pruned: f64,
}

/// The dense path of one kind of layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DensePath {
    /// Tokens at the begin of a prompt that attend to every key, whole segments; 0 where pruning pays from the start.
    pub tokens: usize,
    /// What reading them takes.
    pub estimate: Estimate,
}

impl DensePath {
    /// That of layers of a kind. Positions end with those that the model was trained on: dense attention has true ones.
    pub(super) fn new(shape: Shape, kind: &LayerPlan, instructions: Instructions) -> Self {
        let mut path = Self::default();
        let LayerPlan::Pruned(layer) = kind else { return path };
        let multiplied = [kind, &LayerPlan::Dense].iter().all(|kind| AttendTiles::new(shape, kind).is_some());
        if layer.stages.is_empty() || !multiplied || !matches!(shape.kv(), KvType::F16 | KvType::Bf16) {
            return path;
        }
        let segment = SEGMENT as usize;
        for end in (segment..=shape.geometry.trained as usize).step_by(segment) {
            let next = estimate(shape, layer, end, instructions);
            if next.dense >= next.pruned {
                break;
            }
            path.tokens = end;
            path.estimate.dense += next.dense;
            path.estimate.pruned += next.pruned;
        }
        path
    }
}

/// Seconds of the segment that ends at `end`.
fn estimate(shape: Shape, layer: &PrunedLayer, end: usize, instructions: Instructions) -> Estimate {
    let rows = SEGMENT as usize;
    let [dense, listed] = match instructions {
        Instructions::Portable => PORTABLE,
        Instructions::Hopper => HOPPER,
    };
    let operations = |budget: usize| {
        let keys: f64 = (end - rows..end).map(|position| budget.min(position + 1) as f64).sum();
        4.0 * (shape.query_heads() * shape.head_dim()) as f64 * keys
    };
    let step = StepExtent { tokens: end, rows };
    let reads = LayerPlan::Pruned(layer.clone()).reads(&shape.geometry, step);
    let scans = reads.iter().map(|reads| match reads.part {
        Part::Attend => 0.0,
        Part::Scan { stage } => scan(shape, layer, stage, step, reads.loaded_bytes()),
    });
    Estimate { dense: operations(usize::MAX) / dense, pruned: scans.sum::<f64>() + operations(layer.budget()) / listed }
}

/// Seconds of a stage's scan, which loads `bytes`.
fn scan(shape: Shape, layer: &PrunedLayer, stage: usize, step: StepExtent, bytes: f64) -> f64 {
    let chunks = (layer.scored_chunks(stage, step) * shape.query_heads()) as f64;
    let tiled = Score::prefill(shape, layer, stage).iter().find_map(Score::products);
    match tiled {
        Some(Products { of_chunk, turned, in_turns }) => {
            let rate = match (turned, in_turns) {
                (_, true) => IN_TURNS,
                (true, false) => TURNED,
                (false, false) => SCANNED,
            };
            chunks * of_chunk / rate + bytes / LOADED
        }
        None => {
            let stage = &layer.stages[stage];
            let tiles = stage.query_block.div_ceil(stage.query_stride).div_ceil(16);
            bytes * tiles as f64 / PLAIN
        }
    }
}
