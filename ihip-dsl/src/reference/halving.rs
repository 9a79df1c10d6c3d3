//! Chunks represented by a token that halving finds (paper §3.1, Algorithm 3).

use std::ops::Range;

use super::rope::Branch;
use super::scan::{Reached, Scan, scan_window};
use crate::{ChunkScore, Descent, Halving, Probe};

/// What query head `head` makes of each chunk; `None` where the block's first query does not see it.
pub(super) fn scores(scan: &Scan<'_>, halving: Halving, head: usize, chunks: &[usize]) -> Vec<Option<Reached>> {
    let tensors = scan.tensors;
    let heads = match halving.descent {
        Descent::Each => head..head + 1,
        Descent::KvGroup => tensors.group(tensors.kv_head(head)),
    };
    let queries = heads.clone().map(|head| scan.queries(head)).collect();
    let descent = Into { scan, halving, heads, queries, own: head };
    chunks.iter().enumerate().map(|(index, &start)| descent.descend(index, start)).collect()
}

/// The halves of a chunk that one query head takes.
struct Into<'a> {
    scan: &'a Scan<'a>,
    halving: Halving,
    /// The query heads that decide, of which `own` is one.
    heads: Range<usize>,
    /// Rows of each of these heads.
    queries: Vec<Vec<Vec<f64>>>,
    /// The query head whose score it is.
    own: usize,
}

/// What the key of one half came to.
struct Half {
    /// The largest score of any head that decides.
    deciding: f32,
    /// The score of the query head itself.
    score: f32,
    /// The products of its rows.
    rows: Vec<f64>,
}

impl Into<'_> {
    /// Halves the chunk at `start`, number `index` of its list, until one token is left, each time into the half whose
    /// representative scores higher.
    ///
    /// By default the chunk's score is the largest that any taken half had, as the authors' code does it; in the paper's
    /// Algorithm 3 it is that of the last half taken. Which token is left at the end is of no consequence: the cut keeps
    /// whole chunks (paper §3.1, as the authors' code does).
    fn descend(&self, index: usize, start: usize) -> Option<Reached> {
        let Scan { tensors, stage, .. } = self.scan;
        let chunk = self.scan.stage().chunk as usize;
        let mut left = start;
        let mut right = start + chunk;
        if *stage == 0 {
            // Never bites for a window of at least one chunk; the authors' code has it, so it is stated.
            right = right.min(tensors.t_max.saturating_sub(scan_window(tensors.pruning)));
        }
        let mut reached: Option<Reached> = None;
        let mut closest = f32::INFINITY;

        // ⌊log2 chunk⌋ + 1 halvings. The last compares a token with itself, which may still raise the score where
        // the two branches have different positions.
        let mut size = chunk as f64;
        while size >= 1.0 {
            size /= 2.0;
            // Causality is tested anew at each halving.
            if left >= right || !self.scan.visible(left) {
                continue;
            }
            let middle = (left + right) / 2;
            let (left_key, right_key) = match self.halving.probe {
                // The middle of each half, as the authors' code does.
                Probe::Middle => ((left + middle) / 2, (middle + right) / 2),
                // The first token of each half, as the paper's Algorithm 3 says.
                Probe::First => (left, middle),
            };
            let left_half = self.probe(left_key, Branch::Left, index);
            let right_half = self.probe(right_key, Branch::Right, index);
            if left_key != right_key {
                closest = closest.min((left_half.deciding - right_half.deciding).abs());
            }
            // A tie goes right.
            let taken = if left_half.deciding > right_half.deciding {
                right = middle;
                left_half
            } else {
                left = middle;
                right_half
            };
            reached = Some(match (self.halving.chunk_score, reached) {
                (ChunkScore::RunningMax, Some(before)) => Reached {
                    score: before.score.max(taken.score),
                    rows: before.rows.iter().zip(&taken.rows).map(|(before, row)| before.max(*row)).collect(),
                    closest,
                },
                (ChunkScore::RunningMax | ChunkScore::Last, _) => {
                    Reached { score: taken.score, rows: taken.rows, closest }
                }
            });
        }
        reached
    }

    /// Scores the key at `position` as the representative of `branch`.
    fn probe(&self, position: usize, branch: Branch, index: usize) -> Half {
        let mut half = Half { deciding: f32::NEG_INFINITY, score: f32::NEG_INFINITY, rows: Vec::new() };
        for (head, queries) in self.heads.clone().zip(&self.queries) {
            let products = self.scan.products(queries, head, branch, index, position);
            let score = self.scan.reduced(&products);
            half.deciding = half.deciding.max(score);
            if head == self.own {
                half.score = score;
                half.rows = products;
            }
        }
        half
    }
}
