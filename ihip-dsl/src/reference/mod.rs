//! What a pruned layer means, in plain loops: the specification that every kernel and device is checked against.
//!
//! The reference is computed from the validated description ([`LayerPruning`]) alone. It shares no arithmetic with
//! [`crate::plan`] or the emitter: counts, clamps and positions are stated here once more, in the order of the paper
//! (InfiniteHiP, arXiv 2502.08910) and, where paper and published implementation differ, by default as the authors' code
//! does it, because that is what their numbers were measured with. What comes from elsewhere names its source.
//!
//! | file | family | paper |
//! |---|---|---|
//! | [`scan`] | a stage's chunks and their scores | §3.1, Algorithms 1 and 3 |
//! | [`halving`] | scores by descent into a chunk | Algorithm 3 |
//! | [`whole`] | scores of whole chunks: mean, bounds, every key | of others, named there |
//! | [`soft`] | scores as logarithms of probabilities | none |
//! | [`select`] | ranking, cuts, splitting, the final block list | §3.1, Algorithm 1 |
//! | [`rope`] | rotation, positions of every mode | §3.3, appendix D |
//! | [`attend`] | block sparse attention, dense attention | §3.2 |
//! | [`decode`] | renewing the mask while decoding | §3.2, appendix F |
//! | [`cache`] | what is left of a key or value once it is cached | none |
//! | [`Tensors`] | queries, keys and values as they are cached | §3.3 |
//!
//! # Rankings
//! Query heads may share one ranking of the chunks, one a key-value head, or none ([`crate::Ranking`]). Lists, scores
//! and cuts exist once for each query block and ranking, in this order: row `block · rankings + ranking`.
//!
//! # Precision
//! Everything is f64 but for three roundings. Keys and values are what the cache holds of them ([`cache`]). Cosines and sines are rounded to f32, because every device reads them from
//! an f32 table. A score is rounded to f32, because scores are f32 in every kernel and "equal scores" has to mean the
//! same thing everywhere; it is accumulated in f64 so that no decision hangs on the order of the reference's own sums.
//! Where two scores are closer than the rounding of an f32 sum, a kernel may still decide otherwise: the margins
//! ([`select::Cut::margin`], [`scan::Scores::closest`]) tell those cases apart from mistakes.

pub mod attend;
pub mod cache;
pub mod decode;
pub mod halving;
pub mod rope;
pub mod scan;
pub mod select;
pub mod soft;
mod tensors;
pub mod whole;

use std::ops::Range;

use crate::{KvType, LayerPruning, Ranking};

pub use attend::dense;
pub use decode::{Decode, DecodeStep};
pub use tensors::Tensors;

/// One call of one attention layer.
///
/// Nothing in it is rotated or scaled, whatever the modes are: where the description says that keys are cached
/// rotated, the reference rotates queries and keys itself, at their true positions.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// What the layer does.
    pub pruning: &'a LayerPruning,
    /// Query heads `H`.
    pub query_heads: usize,
    /// Key-value heads; query head `h` reads key-value head `h / (query_heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of one head, even.
    pub head_dim: usize,
    /// Element type of the cache, to which keys, once rotated where they are cached so, and values are rounded.
    pub kv_type: KvType,
    /// Factor on every query, usually 1/√head_dim.
    pub query_scale: f32,
    /// Rotary inverse frequencies in radians a position, `head_dim / 2` of them.
    pub frequencies: &'a [f64],
    /// `[queries, query_heads, head_dim]`.
    pub queries: &'a [f32],
    /// `[keys, kv_heads, head_dim]`, from position 0 to at least the last query's.
    pub keys: &'a [f32],
    /// `[keys, kv_heads, head_dim]`.
    pub values: &'a [f32],
    /// Position of the first query; query `i` stands at `first_position + i`.
    pub first_position: usize,
    /// Keys that the scan's grid is laid out for (`Tmax`), at least `first_position + queries`.
    pub t_max: usize,
    /// Positions that the model was trained on, `L`.
    pub trained: usize,
}

impl Problem<'_> {
    /// Rankings of a query block, `R`: how many lists it has.
    #[must_use]
    pub fn rankings(&self) -> usize {
        match self.pruning.ranking {
            Ranking::All => 1,
            Ranking::KvGroup => self.kv_heads,
            Ranking::Each => self.query_heads,
        }
    }

    /// The ranking, and so the block list, of query head `head`.
    #[must_use]
    pub fn ranking(&self, head: usize) -> usize {
        head * self.rankings() / self.query_heads
    }
}

/// Everything that one call computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What happened in each stage, in order.
    pub stages: Vec<StageOutcome>,
    /// The block list of every query block of the attention and each of its rankings.
    pub lists: Vec<BlockList>,
    /// `[queries, query_heads, head_dim]`.
    pub out: Vec<f32>,
}

/// One stage, for each of its query blocks and rankings.
#[derive(Clone, Debug, PartialEq)]
pub struct StageOutcome {
    /// First positions of the chunks that entered, ascending.
    pub input: Vec<Vec<usize>>,
    /// Scores of these chunks.
    pub scores: Vec<scan::Scores>,
    /// What the cut after the stage kept of them.
    pub cuts: Vec<select::Cut>,
}

/// The blocks that the heads of one ranking of a query block attend to besides sinks and window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockList {
    /// First positions, ascending.
    pub blocks: Vec<usize>,
    /// How many of them, from the front, the attention reads.
    pub count: usize,
}

/// Computes a prefill call: every stage for every query block, then the attention.
///
/// # Panics
/// Where the slices do not have the shapes that [`Problem`] states.
#[must_use]
pub fn prefill(problem: &Problem<'_>) -> Outcome {
    let tensors = Tensors::new(problem);
    let inputs = match problem.pruning.stages.first() {
        None => Vec::new(),
        Some(first) => {
            let blocks = tensors.query_count().div_ceil(first.query_block as usize);
            vec![scan::first_chunks(problem.pruning, problem.t_max); blocks * tensors.rankings()]
        }
    };
    let (stages, lists) = run_stages(&tensors, 0, inputs, None);
    let out = attend::pruned(&tensors, &lists);
    Outcome { stages, lists, out }
}

/// Runs the stages from number `first` on, and makes the final lists.
///
/// `inputs` are the chunks that enter stage `first`, a list for each of its query blocks and rankings; `held` are their
/// scores, where they are there already.
fn run_stages(
    tensors: &Tensors<'_>,
    first: usize,
    inputs: Vec<Vec<usize>>,
    held: Option<Vec<scan::Scores>>,
) -> (Vec<StageOutcome>, Vec<BlockList>) {
    let pruning = tensors.pruning;
    let queries = tensors.query_count();
    let rankings = tensors.rankings();
    if pruning.stages.is_empty() {
        let blocks = queries.div_ceil(pruning.query_block as usize);
        return (Vec::new(), vec![BlockList::default(); blocks * rankings]);
    }

    let mut outcomes = Vec::new();
    let (mut inputs, mut held) = (inputs, held);
    for (index, stage) in pruning.stages.iter().enumerate().skip(first) {
        let next = pruning.stages.get(index + 1);
        // A stage states the tokens that *enter* it, so the cut after this one is the next one's, in chunks of this.
        let kept_tokens =
            next.map_or(pruning.keep, |next| next.keep.expect("every stage but the first states what it keeps"));
        let kept_chunks = (kept_tokens / stage.chunk) as usize;

        let mut outcome = StageOutcome { input: inputs, scores: Vec::new(), cuts: Vec::new() };
        let held = held.take();
        for (entry, chunks) in outcome.input.iter().enumerate() {
            let rows = query_rows(entry / rankings, stage.query_block as usize, queries);
            let scores = match &held {
                Some(held) => held[entry].clone(),
                None => scan::scan(tensors, index, rows, tensors.heads(entry % rankings), chunks),
            };
            outcome.cuts.push(select::cut(chunks, &scores.scores, kept_chunks));
            outcome.scores.push(scores);
        }

        inputs = match next {
            None => Vec::new(),
            Some(next) => {
                let parents = outcome.cuts.len() / rankings;
                let children = queries.div_ceil(next.query_block as usize);
                let ratio = (stage.query_block / next.query_block) as usize;
                (0..children * rankings)
                    .map(|entry| {
                        let parent = select::parent(entry / rankings, children, parents, ratio);
                        let cut = &outcome.cuts[parent * rankings + entry % rankings];
                        select::split(&cut.kept, stage.chunk as usize, next.chunk as usize)
                    })
                    .collect()
            }
        };
        outcomes.push(outcome);
    }

    let last = outcomes.last().expect("there is a stage");
    let lists = last
        .cuts
        .iter()
        .enumerate()
        .map(|(entry, cut)| {
            let rows = query_rows(entry / rankings, pruning.query_block as usize, queries);
            let first_position = tensors.position(rows.start);
            select::final_list(&cut.kept, first_position, pruning.query_block as usize)
        })
        .collect();
    (outcomes, lists)
}

/// The queries of block `block`: blocks are counted from the first query of the call, and the last may be ragged.
fn query_rows(block: usize, query_block: usize, queries: usize) -> Range<usize> {
    block * query_block..((block + 1) * query_block).min(queries)
}
