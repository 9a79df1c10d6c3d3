//! How the scans of prefill on tensor cores are spread over the chip.

use crate::StagePlan;
use crate::tuning::{ScanPrefill, Tuning};

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
