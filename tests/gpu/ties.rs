//! Which blocks a list may hold or not where scores are known but for their rounding.
//!
//! A descent whose two halves score nearly alike may take either, so a chunk has an interval of scores; a chunk whose
//! interval reaches the cut may stay or go. What follows is uncertain too.

use ihip_dsl::{LayerPruning, ScanRope, Stage};

/// One query block of one layer whose stages halve, and rank for all heads together, at `relative` or `chunk_indexed`
/// positions.
pub(super) struct Ties<'a> {
    pub(super) pruning: &'a LayerPruning,
    pub(super) query_heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) frequencies: &'a [f64],
    /// The call with which each stage ran last: all the same but for masks that are renewed in parts.
    pub(super) calls: &'a [Call],
    /// `[tokens, kv_heads, head_dim]`, not rotated.
    pub(super) keys: &'a [f32],
    /// Scores nearer than this may come out in another order.
    pub(super) near: f64,
}

/// What a stage ran with.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// `[rows, query_heads, head_dim]`, neither rotated nor scaled.
    pub(super) queries: Vec<f32>,
    pub(super) first_position: usize,
    pub(super) t_max: usize,
}

/// A chunk that enters a stage, for sure or perhaps.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    start: usize,
    certain: bool,
    /// Least and greatest score it may have; `None` where it is never scored.
    score: Option<(f64, f64)>,
}

/// No score yet.
const NONE: (f64, f64) = (f64::NEG_INFINITY, f64::NEG_INFINITY);

impl Ties<'_> {
    /// Whether every one of `blocks` may be in the final list and may be out of it.
    pub(super) fn may_differ(&self, blocks: &[usize]) -> bool {
        let pruning = self.pruning;
        let (sink, first) = (pruning.sink as usize, pruning.stages[0].chunk as usize);
        let tokens = self.calls[0].t_max.saturating_sub(sink + pruning.window as usize);
        let mut starts: Vec<(usize, bool)> =
            (0..tokens.div_ceil(first)).map(|chunk| (sink + chunk * first, true)).collect();
        let mut uncertain = Vec::new();
        for (index, stage) in pruning.stages.iter().enumerate() {
            // The index of a chunk is its position: one that may be missing moves all that follow.
            if pruning.rope.scan == ScanRope::ChunkIndexed && !uncertain.is_empty() {
                return true;
            }
            let next = pruning.stages.get(index + 1);
            let keep = next.map_or(pruning.keep, |next| next.keep.expect("a later stage")) / stage.chunk;
            let kept = cut(&self.scored(stage, &self.calls[index], &starts), keep as usize, self.near);
            uncertain = kept.iter().filter(|(_, certain)| !certain).map(|(start, _)| *start).collect();
            let pieces = next.map_or(stage.chunk, |next| next.chunk) as usize;
            let split = |(start, certain): (usize, bool)| {
                (start..start + stage.chunk as usize).step_by(pieces).map(move |piece| (piece, certain))
            };
            starts = kept.into_iter().flat_map(split).collect();
        }
        blocks.iter().all(|block| uncertain.contains(block))
    }

    fn scored(&self, stage: &Stage, call: &Call, starts: &[(usize, bool)]) -> Vec<Candidate> {
        let window = self.pruning.window as usize - self.pruning.stages[0].chunk as usize;
        let visible = |start: usize| start + window <= call.first_position;
        let blank = |&(start, certain)| Candidate { start, certain, score: visible(start).then_some(NONE) };
        let mut candidates: Vec<Candidate> = starts.iter().map(blank).collect();
        for head in 0..self.query_heads {
            let rows = self.rows(stage, call, head, starts.len(), window);
            for (number, candidate) in candidates.iter_mut().enumerate() {
                let Some((least, most)) = &mut candidate.score else { continue };
                let descent = Descent { ties: self, rows: &rows, head, number, limit: call.first_position - window };
                let halvings = stage.chunk.ilog2() + 1;
                let (low, high) = descent.score(candidate.start, candidate.start + stage.chunk as usize, halvings);
                (*least, *most) = (least.max(low), most.max(high));
            }
        }
        candidates
    }

    /// Averaged and rotated queries of `head`.
    fn rows(&self, stage: &Stage, call: &Call, head: usize, chunks: usize, window: usize) -> Vec<Vec<f64>> {
        let (row, stride) = (self.query_heads * self.head_dim, stage.query_stride as usize);
        let count = call.queries.len() / row;
        let scale = (self.head_dim as f64).sqrt().recip();
        let averaged = |base: usize| {
            let position = match self.pruning.rope.scan {
                ScanRope::Relative => window + 1,
                ScanRope::ChunkIndexed => (call.first_position + base).min(chunks + window),
                other => unreachable!("{other:?}"),
            };
            let members = base..count.min(base + stride);
            let number = members.len() as f64;
            let mut mean = vec![0.0; self.head_dim];
            for member in members {
                let query = &call.queries[member * row + head * self.head_dim..][..self.head_dim];
                for (mean, q) in mean.iter_mut().zip(self.rotated(query, position)) {
                    *mean += q * scale / number;
                }
            }
            mean
        };
        (0..count).step_by(stride).map(averaged).collect()
    }

    fn rotated(&self, x: &[f32], position: usize) -> Vec<f64> {
        let half = self.frequencies.len();
        let mut out: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for (pair, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (out[pair], out[pair + half]);
            out[pair] = a * cos - b * sin;
            out[pair + half] = b * cos + a * sin;
        }
        out
    }
}

/// The chunks that stay for sure or perhaps, ascending, and which.
fn cut(candidates: &[Candidate], keep: usize, near: f64) -> Vec<(usize, bool)> {
    // Never scored, chunks rank last and by position.
    let low = |candidate: &Candidate| candidate.score.map_or(f64::NEG_INFINITY, |(low, _)| low);
    let high = |candidate: &Candidate| candidate.score.map_or(f64::NEG_INFINITY, |(_, high)| high);
    let mut lows: Vec<f64> = candidates.iter().filter(|candidate| candidate.certain).map(low).collect();
    let mut highs: Vec<f64> = candidates.iter().map(high).collect();
    lows.sort_by(f64::total_cmp);
    highs.sort_by(f64::total_cmp);
    let above = |sorted: &[f64], bound: f64| sorted.len() - sorted.partition_point(|score| *score <= bound);
    let mut never_before = 0;
    let mut kept = Vec::new();
    for candidate in candidates {
        // How many are above it at least, and how many may be, itself left out.
        let (least, most) = match candidate.score {
            Some((low, high)) => (above(&lows, high + near), above(&highs, low - near) - 1),
            None => {
                let scored = above(&highs, f64::NEG_INFINITY);
                never_before += 1;
                (above(&lows, f64::NEG_INFINITY) + never_before - 1, scored + never_before - 1)
            }
        };
        if least < keep {
            kept.push((candidate.start, candidate.certain && most < keep));
        }
    }
    kept
}

/// One head's descent into a chunk.
struct Descent<'a> {
    ties: &'a Ties<'a>,
    rows: &'a [Vec<f64>],
    head: usize,
    /// Number of the chunk in its list.
    number: usize,
    /// Largest position at which a half may begin.
    limit: usize,
}

impl Descent<'_> {
    /// Least and greatest score of the half `[left, right)`, whichever way near ties go.
    fn score(&self, left: usize, right: usize, halvings: u32) -> (f64, f64) {
        if halvings == 0 || left >= right || left > self.limit {
            return NONE;
        }
        let middle = (left + right) / 2;
        let (left_score, right_score) = (self.probe((left + middle) / 2, 0), self.probe((middle + right) / 2, 1));
        let taken = |left, right, score: f64| {
            let (low, high) = self.score(left, right, halvings - 1);
            (low.max(score), high.max(score))
        };
        if (left_score - right_score).abs() < self.ties.near {
            let (left, right) = (taken(left, middle, left_score), taken(middle, right, right_score));
            (left.0.min(right.0), left.1.max(right.1))
        } else if left_score > right_score {
            taken(left, middle, left_score)
        } else {
            taken(middle, right, right_score)
        }
    }

    fn probe(&self, token: usize, branch: usize) -> f64 {
        let ties = self.ties;
        let kv_head = self.head / (ties.query_heads / ties.kv_heads);
        let key = &ties.keys[(token * ties.kv_heads + kv_head) * ties.head_dim..][..ties.head_dim];
        let position = if ties.pruning.rope.scan == ScanRope::Relative { branch } else { self.number };
        let key = ties.rotated(key, position);
        let product = |row: &Vec<f64>| row.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>();
        self.rows.iter().map(product).fold(f64::NEG_INFINITY, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::{Candidate, cut};

    fn candidate(start: usize, score: f64) -> Candidate {
        Candidate { start, certain: true, score: Some((score, score)) }
    }

    #[test]
    fn only_what_is_near_the_cut_is_uncertain() {
        let candidates = vec![candidate(0, 3.0), candidate(8, 1.0), candidate(16, 2.0), candidate(24, 2.00001)];
        assert_eq!(cut(&candidates, 2, 1e-4), [(0, true), (16, false), (24, false)]);
        assert_eq!(cut(&candidates, 2, 1e-6), [(0, true), (24, true)]);
        assert_eq!(cut(&candidates, 3, 1e-4), [(0, true), (16, true), (24, true)]);
    }

    #[test]
    fn an_interval_that_reaches_the_cut_is_uncertain_and_what_was_never_scored_comes_last() {
        let wide = Candidate { start: 8, certain: true, score: Some((0.5, 2.5)) };
        let never = |start| Candidate { start, certain: true, score: None };
        let candidates = vec![candidate(0, 2.0), wide, never(16), never(24)];
        assert_eq!(cut(&candidates, 1, 1e-4), [(0, false), (8, false)]);
        assert_eq!(cut(&candidates, 3, 1e-4), [(0, true), (8, true), (16, true)]);
    }
}
