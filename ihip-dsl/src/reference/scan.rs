//! The scan of one stage: which chunks there are and how they score against a query block (paper §3.1, Algorithm 3).

use std::ops::Range;

use super::rope::{self, Branch, Span};
use super::tensors::dot;
use super::{Tensors, halving, soft, whole};
use crate::{LayerPruning, QueryReduction, Representative, ScanRope, Stage};

/// Score of a chunk that no query of the block may see, below that of any chunk that one may.
pub const NEVER_SCORED: f32 = -32000.0;

/// Scores of one query block's chunks in one ranking, in the order of the chunks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The largest score over the ranking's query heads; [`NEVER_SCORED`] where nothing of the chunk was probed.
    pub scores: Vec<f32>,
    /// The smallest difference between the two halves' deciding scores at any halving by any head, where the halves
    /// were represented by different keys; infinite where there was none. A chunk with a tiny one may be descended
    /// otherwise by another order of summation, and score otherwise.
    pub closest: Vec<f32>,
}

impl Scores {
    /// Adds what other heads made of the same chunks, or of those and some behind them.
    pub(super) fn join(&mut self, others: Self) {
        self.scores.resize(others.scores.len(), NEVER_SCORED);
        self.closest.resize(others.closest.len(), f32::INFINITY);
        for (score, other) in self.scores.iter_mut().zip(others.scores) {
            *score = score.max(other);
        }
        for (closest, other) in self.closest.iter_mut().zip(others.closest) {
            *closest = closest.min(other);
        }
    }
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
/// The same for every query block and ranking, for a grid laid out for `t_max` keys; empty where there are no stages.
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

/// Scores `chunks`, given by their first positions in ascending order, against the queries `rows` in stage `stage`, for
/// the query heads `heads` that share a ranking.
///
/// A chunk counts as much as the head that wants it most (as the authors' code does by default).
#[must_use]
pub fn scan(
    tensors: &Tensors<'_>,
    stage: usize,
    rows: Range<usize>,
    heads: impl Iterator<Item = usize>,
    chunks: &[usize],
) -> Scores {
    let scan = Scan { tensors, stage, rows, chunks: chunks.len() };
    let mut result = Scores { scores: vec![NEVER_SCORED; chunks.len()], closest: vec![f32::INFINITY; chunks.len()] };
    for head in heads {
        let reached: Vec<Option<Reached>> = match scan.stage().scoring.representative {
            Representative::Halving(halving) => halving::scores(&scan, halving, head, chunks),
            Representative::Mean => whole::scores(&scan, head, chunks, whole::mean),
            Representative::MinMax => whole::scores(&scan, head, chunks, whole::min_max),
            Representative::Exact => whole::exact(&scan, head, chunks),
        };
        for (closest, reached) in result.closest.iter_mut().zip(&reached) {
            *closest = reached.as_ref().map_or(*closest, |reached| closest.min(reached.closest));
        }
        let scores = match scan.stage().scoring.scores {
            crate::Scores::Raw => reached.iter().map(|reached| reached.as_ref().map(|reached| reached.score)).collect(),
            crate::Scores::Soft => soft::scores(&reached, scan.stage().scoring.query_reduction),
        };
        for (best, score) in result.scores.iter_mut().zip(scores) {
            *best = score.map_or(*best, |score| best.max(score));
        }
    }
    result
}

/// What one query head made of a chunk.
pub(super) struct Reached {
    /// The score of the query block.
    pub(super) score: f32,
    /// Scores of its rows.
    pub(super) rows: Vec<f64>,
    /// As in [`Scores::closest`].
    pub(super) closest: f32,
}

/// The scan of one query block in one stage.
pub(super) struct Scan<'a> {
    pub(super) tensors: &'a Tensors<'a>,
    /// Number of the stage.
    pub(super) stage: usize,
    /// Queries of the block.
    rows: Range<usize>,
    /// Chunks in the list.
    chunks: usize,
}

impl Scan<'_> {
    pub(super) fn stage(&self) -> &Stage {
        &self.tensors.pruning.stages[self.stage]
    }

    /// Causality is tested on the left edge alone, against the block's first query. A window of 2·chunk − 1 keeps all
    /// keys that are then read at or below that query.
    pub(super) fn visible(&self, left: usize) -> bool {
        left + scan_window(self.tensors.pruning) <= self.span().queries.start
    }

    fn rope(&self) -> ScanRope {
        scan_rope(self.tensors.pruning, self.stage)
    }

    fn span(&self) -> Span {
        Span { queries: self.tensors.positions(&self.rows), trained: self.tensors.trained }
    }

    /// The rows that stand for the block's queries, where the stage's mode has them.
    pub(super) fn queries(&self, head: usize) -> Vec<Vec<f64>> {
        self.averaged(head, |position| self.query_position(position))
    }

    /// The rows that stand for the block's queries, turned by their distance to the chunk with number `index`, so that
    /// its keys can stay as they are cached.
    pub(super) fn turned_queries(&self, head: usize, index: usize, start: usize) -> Vec<Vec<f64>> {
        let key = self.key_position(Branch::Right, index, start);
        self.averaged(head, |position| {
            self.query_position(position)
                .zip(key)
                .map(|(query, key)| query.checked_sub(key).expect("a query stands behind every chunk that it may see"))
        })
    }

    /// Neighbouring queries are rotated at the position of the first of them, then averaged, as the authors' code does;
    /// the paper scores every query.
    ///
    /// A group of neighbours that the end of the call cuts off is averaged over those that are there.
    fn averaged(&self, head: usize, position: impl Fn(usize) -> Option<usize>) -> Vec<Vec<f64>> {
        let tensors = self.tensors;
        let stride = self.stage().query_stride as usize;
        self.rows
            .clone()
            .step_by(stride)
            .map(|base| {
                let neighbours = base..(base + stride).min(self.rows.end);
                let count = neighbours.len() as f64;
                let position = position(tensors.position(base));
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

    fn query_position(&self, position: usize) -> Option<usize> {
        rope::scan_query(self.rope(), position, self.chunks, scan_window(self.tensors.pruning))
    }

    fn key_position(&self, branch: Branch, index: usize, position: usize) -> Option<usize> {
        rope::scan_key(self.rope(), branch, index, position, &self.span())
    }

    /// The products of each of `queries` with the key at `position` of query head `head`, which represents `branch` of
    /// the chunk with number `index`.
    pub(super) fn products(
        &self,
        queries: &[Vec<f64>],
        head: usize,
        branch: Branch,
        index: usize,
        position: usize,
    ) -> Vec<f64> {
        let rotary = self.key_position(branch, index, position);
        let key = rotate_if(self.tensors, self.tensors.key(position, self.tensors.kv_head(head)), rotary);
        queries.iter().map(|query| dot(query, &key)).collect()
    }

    /// What the rows make of their products with one key.
    pub(super) fn reduced(&self, products: &[f64]) -> f32 {
        let reduced = match self.stage().scoring.query_reduction {
            QueryReduction::Max => products.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            QueryReduction::Mean => products.iter().sum::<f64>() / products.len() as f64,
        };
        reduced as f32
    }
}

fn rotate_if(tensors: &Tensors<'_>, x: &[f64], position: Option<usize>) -> Vec<f64> {
    match position {
        Some(position) => rope::rotate(x, position, tensors.frequencies),
        None => x.to_vec(),
    }
}
