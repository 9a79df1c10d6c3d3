//! What the scans of prefill on tensor cores multiply, and how they are spread over the chip.

use super::factors::Factors;
use crate::StagePlan;
use crate::tuning::{ScanPrefill, Tuning};

/// What a scan multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Products {
    /// Multiplications and additions for one chunk and the rows of one head.
    pub(super) of_chunk: f64,
    /// Whether keys are turned.
    pub(super) turned: bool,
    /// Whether rows take turns in shared memory.
    pub(super) in_turns: bool,
}

impl Products {
    /// Those of `columns` that stand for a chunk and rows of `heads` heads. Rows are split in two.
    pub(super) fn new(factors: &Factors, heads: usize, columns: usize) -> Self {
        let turned = factors.rows.rotation.turns_keys();
        let parts = if turned { 3 } else { 2 };
        let of_column = 2 * parts * factors.all_rows() * factors.shape.head_dim();
        let of_chunk = (columns * of_column) as f64 / heads as f64;
        Self { of_chunk, turned, in_turns: factors.take_turns() }
    }
}

/// Blocks of threads for `blocks` query blocks of `heads` teams of heads each, and lists of `chunks` chunks, `at_once` of
/// which a block of threads takes at a time.
pub(super) fn grid(tuning: ScanPrefill, blocks: usize, heads: usize, chunks: usize, at_once: usize) -> [u32; 3] {
    let groups = chunks.div_ceil(at_once).clamp(1, tuning.blocks.div_ceil(blocks * heads));
    [groups as u32, heads as u32, blocks as u32]
}

/// Every choice for a stage whose warps may take any of `chunks` at a time, and a block of threads `at_once` of them with a
/// choice.
///
/// Of a list that one block of threads goes through at a time, it does not matter how many there may be: no number but
/// `default`'s is tried.
pub(super) fn space(
    stage: &StagePlan,
    chunks: [usize; 3],
    default: ScanPrefill,
    at_once: impl Fn(ScanPrefill) -> usize,
) -> Vec<Tuning> {
    let listed = stage.keep_chunks.map_or(usize::MAX, |keep| keep * stage.split);
    let mut choices = Vec::new();
    for warps in [4, 8] {
        for chunks in chunks {
            choices.extend([512, 1024, 2048].map(|blocks| ScanPrefill { warps, chunks, blocks }));
        }
    }
    choices.retain(|choice| at_once(*choice) < listed || choice.blocks == default.blocks);
    choices.into_iter().map(Tuning::ScanPrefill).collect()
}
