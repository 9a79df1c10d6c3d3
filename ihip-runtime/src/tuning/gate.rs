//! The gate that a candidate passes before it is timed: a small case against the reference.

use std::fmt;

use ihip_dsl::reference::{self, BlockList, Decode, Problem};
use ihip_dsl::{AttendRope, Attention, Geometry, KvType, LayerPruning, Phases, Ranking, Rope, ScanRope};

use crate::device::BlockLists;
use crate::session::segment_end;

/// Keys of the case: enough for the presets' last cuts to leave some out.
const TOKENS: usize = 4096;
/// Queries of the prefill call: a ragged end of a query block.
const ROWS: usize = 8;

/// Queries, keys and values of one call, row-major, of values that a cache of 16 bits holds as they are.
#[derive(Clone, Debug)]
pub struct Case {
    /// Position of the first query.
    pub first: usize,
    /// Queries.
    pub rows: usize,
    /// `[rows, query_heads · head_dim]`.
    pub queries: Vec<f32>,
    /// `[first + rows, kv_heads · head_dim]`.
    pub keys: Vec<f32>,
    /// The same.
    pub values: Vec<f32>,
}

/// What a step left behind.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// `[rows, query_heads · head_dim]`.
    pub out: Vec<f32>,
    /// The block lists, where the layer has any.
    pub lists: Option<BlockLists>,
}

/// How a candidate differs from what is right.
#[derive(Clone, Debug, PartialEq)]
pub enum Mistake {
    /// Block lists that are not those expected.
    Lists {
        /// Lists that differ.
        differ: usize,
        /// All of them.
        of: usize,
    },
    /// An output too far off.
    Output {
        /// The largest difference, or not a number.
        difference: f32,
        /// What would do.
        most: f32,
    },
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lists { differ, of } => write!(f, "{differ} of {of} block lists differ"),
            Self::Output { difference, most } => write!(f, "outputs differ by {difference:.1e}, {most:.1e} at most"),
        }
    }
}

/// A case of each phase, and what the reference makes of it.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Prefill, then decoding.
    cases: [Case; 2],
    expected: [StepOutcome; 2],
    tolerance: f32,
}

impl Gate {
    /// A case for a layer that does `phases`. Cases of another `seed` are others.
    #[must_use]
    pub fn new(phases: &Phases, geometry: &Geometry, frequencies: &[f64], seed: u64) -> Self {
        let cases = [ROWS, 1].map(|rows| case(geometry, rows, seed));
        let (prefill, decode) = rayon::join(
            || expected(&phases.prefill, geometry, frequencies, &cases[0], false),
            || expected(&phases.decode, geometry, frequencies, &cases[1], true),
        );
        let rotated = |attention: &Attention| attention.pruned().is_none_or(|pruning| pruning.rope.rotated_cache());
        let rounds = geometry.kv_type != KvType::F32 && (rotated(&phases.prefill) || rotated(&phases.decode));
        Self { cases, expected: [prefill, decode], tolerance: tolerance(rounds) }
    }

    /// The case of decoding, or of prefill.
    #[must_use]
    pub fn case(&self, decodes: bool) -> &Case {
        &self.cases[usize::from(decodes)]
    }

    /// Compares what came of the case with what the reference makes of it.
    #[must_use]
    pub fn check(&self, decodes: bool, outcome: &StepOutcome) -> Option<Mistake> {
        self.compare(&self.expected[usize::from(decodes)], outcome)
    }

    /// Compares two outcomes of one step: lists have to be equal, for no choice changes how a chunk is scored.
    #[must_use]
    pub fn compare(&self, expected: &StepOutcome, outcome: &StepOutcome) -> Option<Mistake> {
        if let (Some(expected), Some(found)) = (&expected.lists, &outcome.lists) {
            let differ = (0..expected.counts.len()).filter(|&list| counted(expected, list) != counted(found, list));
            let differ = differ.count();
            if differ > 0 {
                return Some(Mistake::Lists { differ, of: expected.counts.len() });
            }
        }
        let differences = expected.out.iter().zip(&outcome.out).map(|(a, b)| (a - b).abs());
        let difference =
            differences.fold(0.0, |most: f32, next| if next > most || next.is_nan() { next } else { most });
        let most = self.tolerance * expected.out.iter().fold(0.0, |most: f32, next| most.max(next.abs()));
        let whole = expected.out.len() == outcome.out.len();
        (!whole || difference.is_nan() || difference > most).then_some(Mistake::Output { difference, most })
    }
}

/// How far an output may be off, as a share of the largest: by sums of f32, and by the rounding of rotated keys and of
/// weights where those are cached.
const fn tolerance(rounds: bool) -> f32 {
    if rounds { 2e-2 } else { 2e-4 }
}

fn counted(lists: &BlockLists, list: usize) -> Option<&[i32]> {
    let count = usize::try_from(*lists.counts.get(list)?).ok()?;
    lists.blocks.get(list * lists.width..)?.get(..count)
}

fn case(geometry: &Geometry, rows: usize, seed: u64) -> Case {
    let row = |heads: u32| (heads * geometry.head_dim) as usize;
    let mut state = seed;
    // Multiples of 2⁻⁷ in [−1, 1) (splitmix64).
    let mut noise = |count: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = state;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (bits >> 56) as f32 / 128.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    };
    Case {
        first: TOKENS - rows,
        rows,
        queries: noise(rows * row(geometry.query_heads)),
        keys: noise(TOKENS * row(geometry.kv_heads)),
        values: noise(TOKENS * row(geometry.kv_heads)),
    }
}

/// What the reference makes of a case.
fn expected(
    attention: &Attention,
    geometry: &Geometry,
    frequencies: &[f64],
    case: &Case,
    decodes: bool,
) -> StepOutcome {
    // The reference reads nothing of the description where every key is seen.
    let all = LayerPruning {
        sink: 0,
        window: 1,
        query_block: 1,
        stages: Vec::new().into(),
        keep: 0,
        ranking: Ranking::All,
        rope: Rope { scan: ScanRope::None, attend: AttendRope::None },
    };
    let problem = Problem {
        pruning: attention.pruned().unwrap_or(&all),
        query_heads: geometry.query_heads as usize,
        kv_heads: geometry.kv_heads as usize,
        head_dim: geometry.head_dim as usize,
        kv_type: geometry.kv_type,
        query_scale: geometry.query_scale,
        frequencies,
        queries: &case.queries,
        keys: &case.keys,
        values: &case.values,
        first_position: case.first,
        t_max: segment_end(case.first),
        trained: geometry.trained as usize,
    };
    let Some(pruning) = attention.pruned() else {
        return StepOutcome { out: reference::dense(&problem), lists: None };
    };
    let (out, lists) = if decodes {
        let step = Decode::new().renew(&problem, (!pruning.stages.is_empty()).then_some(0).into());
        (step.out, step.lists)
    } else {
        let outcome = reference::prefill(&problem);
        (outcome.out, outcome.lists)
    };
    StepOutcome { out, lists: Some(block_lists(pruning, geometry, &lists)) }
}

/// The lists in the form in which devices give them.
fn block_lists(pruning: &LayerPruning, geometry: &Geometry, lists: &[BlockList]) -> BlockLists {
    let width = lists.iter().map(|list| list.blocks.len()).max().unwrap_or(0);
    let padded = lists.iter().flat_map(|list| {
        let blocks = list.blocks.iter().map(|block| *block as i32);
        blocks.chain(std::iter::repeat_n(-1, width - list.blocks.len()))
    });
    BlockLists {
        rankings: geometry.rankings(pruning.ranking) as usize,
        width,
        blocks: padded.collect(),
        counts: lists.iter().map(|list| list.count as i32).collect(),
    }
}
