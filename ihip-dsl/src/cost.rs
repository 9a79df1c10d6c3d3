//! What a layer reads of its cache in one step, counted before anything runs.
//!
//! Only reads of keys, values and what stands for keys are counted: they are what a step at a long context takes its
//! time for. The rules:
//!
//! - A chunk that is halved reads the distinct keys that its probes fall on. Of the 18 probes of 256 tokens, 14 are: the
//!   last two halvings find tokens that were probed before, but for the first of the chunk and of its second half.
//! - Heads of a KV group that descend on their own are taken to go their own ways, each half as likely as the other: a
//!   key counts with the probability that any of them probes it. Heads that descend together take one path.
//! - A mean is one entry of f32, bounds are two of the cache's type, and `exact` reads every key.
//! - Heads that rank on their own have lists of their own from the second stage on, which are taken not to overlap.
//! - A query block reads a KV head's entries once, whatever its rows. A chunk at the edge of what a block may see counts
//!   whole.
//! - A step reads an entry from memory once, however many of its blocks do: never more than there are.

use std::collections::BTreeSet;

use crate::renewal::least_common_multiple;
use crate::{Descent, Geometry, Halving, LayerPlan, Probe, PrunedLayer, Ranking, Representative, StagePlan};

/// The step whose reads are counted: the last `rows` of `tokens` tokens, 1 while decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepExtent {
    /// Keys that the step's last query sees, and that its grid is laid out for.
    pub tokens: usize,
    /// Queries of the step, at least 1.
    pub rows: usize,
}

/// The part of a layer that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The scan of a stage.
    Scan {
        /// Number of the stage, from 0.
        stage: usize,
    },
    /// The attention.
    Attend,
}

/// What one part of a layer reads in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Reads {
    /// Which part.
    pub part: Part,
    /// Lists that the part works through: its query blocks, each as often as there are rankings.
    pub lists: usize,
    /// Chunks of the longest list: those that a scan scores, or those that the attention attends to besides sinks and
    /// window.
    pub chunks: usize,
    /// Entries that a KV head's query blocks read, each on its own: what passes the caches of the chip.
    pub loaded: f64,
    /// Entries of a KV head that are read at all.
    pub distinct: f64,
    /// Bytes of an entry of one KV head: a key, a mean, a bound, or a key with its value.
    pub entry_bytes: usize,
    /// Key-value heads.
    pub kv_heads: usize,
}

impl Reads {
    /// Bytes that pass the caches of the chip, of all KV heads.
    #[must_use]
    pub fn loaded_bytes(&self) -> f64 {
        self.loaded * (self.entry_bytes * self.kv_heads) as f64
    }

    /// Bytes that come from memory at least, of all KV heads.
    #[must_use]
    pub fn distinct_bytes(&self) -> f64 {
        self.distinct * (self.entry_bytes * self.kv_heads) as f64
    }
}

/// Rows of a query block of dense attention.
const DENSE_BLOCK: usize = 64;

impl LayerPlan {
    /// What each part of the layer reads in a step, in the order they run.
    ///
    /// # Panics
    /// Where the step has no rows, or more than tokens.
    #[must_use]
    pub fn reads(&self, geometry: &Geometry, step: StepExtent) -> Vec<Reads> {
        assert!((1..=step.tokens).contains(&step.rows), "{step:?}");
        let key = geometry.kv_type.row_bytes(geometry.head_dim as usize);
        let kv_heads = geometry.kv_heads as usize;
        match self {
            Self::Dense => {
                let blocks = blocks(step, DENSE_BLOCK);
                let loaded = blocks.iter().map(|block| block.end as f64).sum();
                vec![Reads {
                    part: Part::Attend,
                    lists: blocks.len(),
                    chunks: 0,
                    loaded,
                    distinct: step.tokens as f64,
                    entry_bytes: 2 * key,
                    kv_heads,
                }]
            }
            Self::Pruned(layer) => {
                let scans = layer.stages.iter().map(|stage| layer.scan_reads(stage, geometry, step));
                scans.chain([layer.attend_reads(geometry, step)]).collect()
            }
        }
    }
}

impl PrunedLayer {
    /// Share of decoding steps that renew `stage`: those that its interval or that of a stage before divides.
    #[must_use]
    pub fn renewals(&self, stage: usize) -> f64 {
        renewed_steps(self.stages[..=stage].iter().map(|stage| stage.refresh))
    }

    /// Chunks that the query blocks of one head score in a stage, together.
    pub(crate) fn scored_chunks(&self, stage: usize, step: StepExtent) -> usize {
        let blocks = blocks(step, self.stages[stage].query_block);
        blocks.iter().map(|block| self.scored(stage, block.first, step.tokens)).sum()
    }

    fn scan_reads(&self, stage: &StagePlan, geometry: &Geometry, step: StepExtent) -> Reads {
        let group = geometry.group() as usize;
        let rankings = geometry.rankings(self.ranking) as usize;
        let blocks = blocks(step, stage.query_block);
        // The first stage's list is the same for all; later ones are each ranking's own.
        let shared = stage.index == 0 || self.ranking != Ranking::Each;
        let (lists_of_head, heads_of_list) = if shared { (1, group) } else { (group, 1) };
        let of_chunk = entries(stage, heads_of_list);
        let scored = |block: &Block| self.scored(stage.index, block.first, step.tokens);
        let chunks = blocks.iter().map(scored).max().unwrap_or(0);
        let loaded: f64 = blocks.iter().map(|block| (lists_of_head * scored(block)) as f64 * of_chunk).sum();
        let key = geometry.head_dim as usize;
        let (there_are, entry_bytes) = {
            let tokens = self.chunks(0, step.tokens) * self.stages[0].chunk;
            let own = geometry.kv_type.row_bytes(key);
            let bound = key * geometry.kv_type.bound_bytes();
            match stage.scoring.representative {
                Representative::Halving(_) | Representative::Exact => (tokens, own),
                Representative::Mean => (tokens.div_ceil(stage.chunk), key * size_of::<f32>()),
                Representative::MinMax => (2 * tokens.div_ceil(stage.chunk), bound),
            }
        };
        Reads {
            part: Part::Scan { stage: stage.index },
            lists: blocks.len() * rankings,
            chunks,
            loaded,
            distinct: loaded.min(there_are as f64),
            entry_bytes,
            kv_heads: geometry.kv_heads as usize,
        }
    }

    fn attend_reads(&self, geometry: &Geometry, step: StepExtent) -> Reads {
        let blocks = blocks(step, self.query_block);
        let selected = |block: &Block| match self.stages.len() {
            0 => 0,
            stages => self.keep_blocks.min(self.scored(stages - 1, block.first, step.tokens)),
        };
        let lists_of_head = if self.ranking == Ranking::Each { geometry.group() as usize } else { 1 };
        let keys = |block: &Block| {
            let own = block.end - block.first - 1;
            (self.sink + self.window + own + lists_of_head * selected(block) * self.block).min(block.end)
        };
        let loaded: f64 = blocks.iter().map(|block| keys(block) as f64).sum();
        Reads {
            part: Part::Attend,
            lists: blocks.len() * geometry.rankings(self.ranking) as usize,
            chunks: blocks.iter().map(selected).max().unwrap_or(0),
            loaded,
            distinct: loaded.min(step.tokens as f64),
            entry_bytes: 2 * geometry.kv_type.row_bytes(geometry.head_dim as usize),
            kv_heads: geometry.kv_heads as usize,
        }
    }

    /// Chunks of `stage` that a query block whose first query stands at `first` scores.
    fn scored(&self, stage: usize, first: usize, tokens: usize) -> usize {
        let stage = &self.stages[stage];
        match stage.keep_chunks {
            // A chunk is scored where it begins no later than the window of the scan.
            None => match first.checked_sub(self.scan_window + self.sink) {
                None => 0,
                Some(last) => (last / stage.chunk + 1).min(self.chunks(stage.index, tokens)),
            },
            Some(keep) => keep.min(self.scored(stage.index - 1, first, tokens)) * stage.split,
        }
    }
}

/// A block of queries by their positions.
struct Block {
    first: usize,
    /// One past the last query's, which is how many keys it may see.
    end: usize,
}

fn blocks(step: StepExtent, query_block: usize) -> Vec<Block> {
    let start = step.tokens - step.rows;
    let firsts = (start..step.tokens).step_by(query_block);
    firsts.map(|first| Block { first, end: (first + query_block).min(step.tokens) }).collect()
}

/// Entries that `heads` heads of one KV group read of one chunk.
fn entries(stage: &StagePlan, heads: usize) -> f64 {
    match stage.scoring.representative {
        Representative::Halving(halving) => {
            let paths = if halving.descent == Descent::KvGroup { 1 } else { heads };
            distinct_keys(stage.chunk, stage.halvings, halving, paths)
        }
        Representative::Mean => 1.0,
        Representative::MinMax => 2.0,
        Representative::Exact => stage.chunk as f64,
    }
}

/// Expected number of distinct keys that `paths` independent descents of a chunk probe.
fn distinct_keys(chunk: usize, halvings: usize, halving: Halving, paths: usize) -> f64 {
    let mut descent = Probabilities { halving, probed: vec![0.0; chunk] };
    descent.descend(0, chunk, halvings, 1.0, &mut Vec::new());
    descent.probed.iter().map(|probability| 1.0 - (1.0 - probability).powi(paths as i32)).sum()
}

/// With which probability one descent probes each key of a chunk.
struct Probabilities {
    halving: Halving,
    probed: Vec<f64>,
}

impl Probabilities {
    /// Goes through every path from `left..right` on, which is reached with `probability` after probing `before`.
    fn descend(&mut self, left: usize, right: usize, halvings: usize, probability: f64, before: &mut Vec<usize>) {
        if halvings == 0 || left >= right {
            return;
        }
        let middle = (left + right) / 2;
        let probes = match self.halving.probe {
            Probe::Middle => [(left + middle) / 2, (middle + right) / 2],
            Probe::First => [left, middle],
        };
        let known = before.len();
        for probe in probes {
            if !before.contains(&probe) {
                self.probed[probe] += probability;
                before.push(probe);
            }
        }
        self.descend(left, middle, halvings - 1, probability / 2.0, before);
        self.descend(middle, right, halvings - 1, probability / 2.0, before);
        before.truncate(known);
    }
}

/// Share of steps that one of `intervals` divides, each at least 1.
#[must_use]
pub fn renewed_steps(intervals: impl IntoIterator<Item = usize>) -> f64 {
    let intervals: BTreeSet<usize> = intervals.into_iter().collect();
    // A multiple of an interval is counted with the interval.
    let smallest: Vec<usize> = intervals
        .iter()
        .copied()
        .filter(|interval| !intervals.iter().any(|other| other < interval && interval.is_multiple_of(*other)))
        .collect();
    // Inclusion and exclusion over the sets of intervals that divide a step together.
    (1..1_u32 << smallest.len())
        .map(|set| {
            let chosen = smallest.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1);
            let sign = if set.count_ones() % 2 == 1 { 1.0 } else { -1.0 };
            // Steps that are farther apart than can be written are none.
            least_common_multiple(chosen.map(|(_, interval)| *interval)).map_or(0.0, |multiple| sign / multiple as f64)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_reads_two_keys_a_halving_until_probes_repeat() {
        let keys = |chunk: usize, halving| distinct_keys(chunk, chunk.ilog2() as usize + 1, halving, 1);
        // Two keys for each half of at least 4 tokens. Halves of 2 were probed before, one as the middle of a half above,
        // but for tokens 0 and l/2, which two of l/2 paths end at.
        for (chunk, expected) in [(256, 14.0 + 2.0 / 128.0), (32, 8.0 + 2.0 / 16.0), (8, 4.5), (2, 2.0), (1, 1.0)] {
            assert_eq!(keys(chunk, Halving::PUBLISHED), expected, "{chunk}");
        }
        // The first token of a left half is known from the half before: one new key a halving.
        let first = Halving { probe: Probe::First, ..Halving::PUBLISHED };
        for (chunk, expected) in [(256, 9.0), (32, 6.0), (8, 4.0), (2, 2.0), (1, 1.0)] {
            assert_eq!(keys(chunk, first), expected, "{chunk}");
        }
    }

    #[test]
    fn four_paths_share_what_lies_at_the_top_of_the_descent() {
        // Of the 2^k halves of a level, four paths visit 2^k (1 − (1 − 2^−k)^4), each with two keys; of the last level
        // that has new ones, two halves have one.
        let visit = |level: i32| 1.0 - (1.0 - 2_f64.powi(-level)).powi(4);
        for (chunk, levels) in [(256_usize, 7), (32, 4), (8, 2)] {
            let above: f64 = (0..levels).map(|level| 2.0 * 2_f64.powi(level) * visit(level)).sum();
            let expected = above + 2.0 * visit(levels);
            let counted = distinct_keys(chunk, chunk.ilog2() as usize + 1, Halving::PUBLISHED, 4);
            assert!((counted - expected).abs() < 1e-9, "{chunk}: {counted}, {expected}");
        }
        // With many paths every key is probed.
        assert!(distinct_keys(32, 6, Halving::PUBLISHED, 100_000) > 31.999);
    }

    #[test]
    fn steps_that_several_intervals_divide_are_counted_once() {
        assert_eq!(renewed_steps([]), 0.0);
        assert_eq!(renewed_steps([16, 8, 4]), 0.25);
        // Of six steps 0, 2, 3 and 4.
        assert!((renewed_steps([3, 2]) - 4.0 / 6.0).abs() < 1e-12);
        let rare = renewed_steps([usize::MAX, usize::MAX - 1, usize::MAX - 2]);
        assert!((0.0..1e-15).contains(&rare), "{rare}");
    }
}
