//! The scan of one stage: which chunks there are and how they score against a query block (paper §3.1, Algorithm 3).

use std::ops::Range;

use super::rope::{self, Branch};
use super::{Tensors, dot};
use crate::{LayerPruning, ScanRope};

/// Score of a chunk that no query of the block may see, below that of any chunk that one may.
pub const NEVER_SCORED: f32 = -32000.0;

/// Scores of one query block's chunks, in the order of the chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The largest score over query heads; [`NEVER_SCORED`] where no probe was allowed.
    pub scores: Vec<f32>,
    /// The smallest difference between the two halves' scores at any halving by any head, where the halves were
    /// represented by different keys; infinite where there was none. A chunk with a tiny one may be descended
    /// otherwise by another order of summation, and score otherwise.
    pub closest: Vec<f32>,
}

/// The window while scanning, `w_s = max(0, w − l_0)`.
///
/// One chunk narrower than the attention's (as the authors' code does): a chunk is admitted as soon as any query of
/// the block may need it, so that nothing falls between window and chunks.
#[must_use]
pub fn scan_window(pruning: &LayerPruning) -> usize {
    match pruning.stages.first() {
        Some(first) => pruning.window.saturating_sub(first.chunk) as usize,
        None => pruning.window as usize,
    }
}

/// Rotary positions of stage `stage`: its own, or those of the layer.
#[must_use]
pub fn scan_rope(pruning: &LayerPruning, stage: usize) -> ScanRope {
    pruning.stages[stage].rope.unwrap_or(pruning.rope.scan)
}

/// First positions of the chunks that enter the first stage: all between sinks and the full window (paper §3.1).
///
/// The same for every query block, for a grid laid out for `t_max` keys; empty where there are no stages.
#[must_use]
pub fn first_chunks(pruning: &LayerPruning, t_max: usize) -> Vec<usize> {
    let Some(first) = pruning.stages.first() else {
        return Vec::new();
    };
    let (sink, window) = (pruning.sink as usize, pruning.window as usize);
    let tokens = t_max.saturating_sub(sink + window);
    let count = tokens.div_ceil(first.chunk as usize);
    (0..count).map(|chunk| sink + chunk * first.chunk as usize).collect()
}

/// Scores `chunks`, given by their first positions in ascending order, against the queries `rows` in stage `stage`.
#[must_use]
pub fn scan(tensors: &Tensors<'_>, stage: usize, rows: Range<usize>, chunks: &[usize]) -> Scores {
    let mut result = Scores { scores: vec![NEVER_SCORED; chunks.len()], closest: vec![f32::INFINITY; chunks.len()] };
    for head in 0..tensors.query_heads() {
        let queries = averaged_queries(tensors, stage, rows.clone(), head, chunks.len());
        for (index, &start) in chunks.iter().enumerate() {
            let descent = Descent {
                tensors,
                queries: &queries,
                kv_head: tensors.kv_head(head),
                rope: scan_rope(tensors.pruning, stage),
                index,
                first_position: tensors.position(rows.start),
            };
            let (score, closest) = descent.run(stage, start);
            // Every head shares one ranking: a chunk counts as much as the head that wants it most
            // (as the authors' code does by default).
            result.scores[index] = result.scores[index].max(score);
            result.closest[index] = result.closest[index].min(closest);
        }
    }
    result
}

/// The rows that stand for a query block in a scan: neighbouring queries are rotated at the position of the first of
/// them, then averaged, as the authors' code does; the paper scores every query.
///
/// A group of neighbours that the end of the call cuts off is averaged over those that are there.
fn averaged_queries(
    tensors: &Tensors<'_>,
    stage: usize,
    rows: Range<usize>,
    head: usize,
    chunks: usize,
) -> Vec<Vec<f64>> {
    let stride = tensors.pruning.stages[stage].query_stride as usize;
    let window = scan_window(tensors.pruning);
    let mode = scan_rope(tensors.pruning, stage);
    let end = rows.end;
    rows.step_by(stride)
        .map(|base| {
            let neighbours = base..(base + stride).min(end);
            let count = neighbours.len() as f64;
            let position = rope::scan_query(mode, tensors.position(base), chunks, window);
            let mut mean = vec![0.0; tensors.query(base, head).len()];
            for row in neighbours {
                let query = rotate_if(tensors, tensors.query(row, head), position);
                for (mean, q) in mean.iter_mut().zip(query) {
                    *mean += q / count;
                }
            }
            mean
        })
        .collect()
}

/// The descent into one chunk by one query head.
struct Descent<'a> {
    tensors: &'a Tensors<'a>,
    queries: &'a [Vec<f64>],
    kv_head: usize,
    rope: ScanRope,
    /// Number of the chunk in the stage's list.
    index: usize,
    /// Position of the query block's first query.
    first_position: usize,
}

impl Descent<'_> {
    /// Halves the chunk at `start` until one token is left, each time into the half whose middle token scores higher.
    ///
    /// The chunk's score is the largest that any taken half had. Which token is left at the end is of no consequence:
    /// the cut keeps whole chunks (paper §3.1, as the authors' code does).
    fn run(&self, stage: usize, start: usize) -> (f32, f32) {
        let pruning = self.tensors.pruning;
        let chunk = pruning.stages[stage].chunk as usize;
        let window = scan_window(pruning);

        let mut left = start;
        let mut right = start + chunk;
        if stage == 0 {
            // Never bites for a window of at least one chunk; the authors' code has it, so it is stated.
            right = right.min(self.tensors.t_max.saturating_sub(window));
        }
        let mut score = NEVER_SCORED;
        let mut closest = f32::INFINITY;

        // ⌊log2 chunk⌋ + 1 halvings. The last compares a token with itself, which may still raise the score where
        // the two branches have different positions.
        let mut size = chunk as f64;
        while size >= 1.0 {
            size /= 2.0;
            // Causality is tested on the left edge alone, against the block's first query, anew at each halving. A
            // window of 2·chunk − 1 keeps all that is then probed at or below that query.
            let visible = left + window <= self.first_position;
            if left >= right || !visible {
                continue;
            }
            let middle = (left + right) / 2;
            let (left_key, right_key) = ((left + middle) / 2, (middle + right) / 2);
            let left_score = self.probe(left_key, Branch::Left);
            let right_score = self.probe(right_key, Branch::Right);
            if left_key != right_key {
                closest = closest.min((left_score - right_score).abs());
            }
            // A tie goes right.
            if left_score > right_score {
                right = middle;
                score = score.max(left_score);
            } else {
                left = middle;
                score = score.max(right_score);
            }
        }
        (score, closest)
    }

    /// The largest product of any row with the key at `position`, as the representative of `branch`.
    fn probe(&self, position: usize, branch: Branch) -> f32 {
        let tensors = self.tensors;
        let rotary = rope::scan_key(self.rope, branch, self.index);
        let key = rotate_if(tensors, tensors.key(position, self.kv_head), rotary);
        self.queries.iter().map(|query| dot(query, &key) as f32).fold(f32::NEG_INFINITY, f32::max)
    }
}

fn rotate_if(tensors: &Tensors<'_>, x: &[f64], position: Option<usize>) -> Vec<f64> {
    match position {
        Some(position) => rope::rotate(x, position, tensors.frequencies),
        None => x.to_vec(),
    }
}
