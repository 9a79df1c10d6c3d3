//! The validated description of a pruning pipeline: plain data, the same for plan, emitter and reference.

use std::borrow::Cow;

use serde::Serialize;

use crate::Declared;

/// A pruning pipeline that has passed every rule of [`crate::check`].
///
/// Fields are private so that nobody can make an unchecked one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pipeline {
    name: Cow<'static, str>,
    doc: Cow<'static, str>,
    refresh: Refresh,
    base: Phases,
    overrides: Cow<'static, [LayerRange]>,
}

/// Which layers renew their masks in the same decoding step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refresh {
    /// All whose stage is due, by one counter.
    #[default]
    Together,
    /// Each by a counter of its own, offset against those of other layers, so that no step pays for all of them; where the
    /// first stage's interval has several steps a layer, key-value heads take turns at it.
    Staggered,
}

/// What one layer does in each phase. Both cache keys alike: rotated in both, or in neither.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Phases {
    /// While the prompt is read.
    pub prefill: Attention,
    /// While tokens are generated one by one.
    pub decode: Attention,
}

/// What one layer does in one phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Attends to every key, rotated at true positions.
    Dense,
    /// Attends to what the stages keep.
    Pruned(LayerPruning),
}

impl Attention {
    /// How keys are pruned, if they are.
    #[must_use]
    pub const fn pruned(&self) -> Option<&LayerPruning> {
        match self {
            Self::Dense => None,
            Self::Pruned(pruning) => Some(pruning),
        }
    }
}

impl From<LayerPruning> for Phases {
    /// The same in both phases.
    fn from(pruning: LayerPruning) -> Self {
        Self { prefill: Attention::Pruned(pruning.clone()), decode: Attention::Pruned(pruning) }
    }
}

/// How one layer prunes: the stages, the last cut and the rotary positions of scan and attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerPruning {
    /// First tokens of the sequence that every query sees (`n_sink`, paper §3).
    pub sink: u32,
    /// Most recent tokens that every query sees (`n_stream`, paper §3).
    pub window: u32,
    /// Queries that share one block list in the attention; a stage may scan larger blocks.
    pub query_block: u32,
    /// Pruning stages in the order they run. None at all leaves sink and window: StreamingLLM.
    pub stages: Cow<'static, [Stage]>,
    /// Tokens that the last cut keeps for the attention (paper `k^(N)`); 0 where there are no stages.
    pub keep: u32,
    /// Query heads that share one ranking, and so one block list.
    pub ranking: Ranking,
    /// Rotary positions of scan and attention.
    pub rope: Rope,
}

/// One pruning stage: how the keys that enter it are cut into chunks and scored (paper §3.1, Algorithm 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Tokens kept *entering* this stage; `None` for the first, which sees every key.
    pub keep: Option<u32>,
    /// Tokens in a chunk (`l_c`).
    pub chunk: u32,
    /// Queries that share one ranking in this stage (`b_q`).
    pub query_block: u32,
    /// Neighbouring queries that are averaged before they are scored.
    pub query_stride: u32,
    /// Decoding steps between two renewals of this stage (`n_refresh`).
    pub refresh: u32,
    /// How a chunk's score comes about.
    pub scoring: Scoring,
    /// Rotary positions while this stage scans; `None` for those of the layer.
    pub rope: Option<ScanRope>,
}

/// How a stage scores a chunk. The default is that of the authors' code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Scoring {
    /// What stands for the keys of a chunk.
    pub representative: Representative,
    /// What the rows of a query block make of their products with one key.
    pub query_reduction: QueryReduction,
    /// Whether the chunks of one query are compared as they are or as a distribution.
    pub scores: Scores,
}

/// What stands for the keys of a chunk when it is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Representative {
    /// A token found by halving the chunk again and again (InfiniteHiP, paper Algorithm 3).
    Halving(Halving),
    /// The mean of the chunk's keys (InfLLM-like, MoBA), kept in an array of its own as keys are appended.
    Mean,
    /// Quest's bound: element by element the larger product with the chunk's least and greatest key elements, summed.
    /// Both are kept in arrays of their own as keys are appended.
    MinMax,
    /// Every key: the largest product with any of them.
    Exact,
}

/// How a chunk is halved (paper Algorithm 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Halving {
    /// The token that stands for a half.
    pub probe: Probe,
    /// Which probes make the score.
    pub chunk_score: ChunkScore,
    /// Which heads take the same halves.
    pub descent: Descent,
}

impl Halving {
    /// As the authors' code does.
    pub const PUBLISHED: Self =
        Self { probe: Probe::Middle, chunk_score: ChunkScore::RunningMax, descent: Descent::Each };
}

/// The token that stands for half of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The middle one, as the authors' code does.
    #[default]
    Middle,
    /// The first one, as the paper's Algorithm 3 says.
    First,
}

/// Which probes of a descent make the chunk's score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkScore {
    /// The largest of all halves taken, as the authors' code does.
    #[default]
    RunningMax,
    /// The last half taken, as the paper's Algorithm 3 says.
    Last,
}

/// Which query heads descend into the same half of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Descent {
    /// Each on its own.
    #[default]
    Each,
    /// Those that share a key-value head, by the largest score of any of them.
    KvGroup,
}

/// Which query heads share a ranking: a chunk counts there as much as the head that wants it most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// All of them.
    #[default]
    All,
    /// Those that share a key-value head.
    KvGroup,
    /// None: every head has a ranking of its own.
    Each,
}

/// What the rows of a query block make of their products with one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryReduction {
    /// The largest.
    #[default]
    Max,
    /// The mean.
    Mean,
}

/// How the scores of one row of one head compare with those of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// As they are.
    #[default]
    Raw,
    /// As logarithms of probabilities: each row's softmax over the chunks of its list, taken before rows and heads are
    /// reduced.
    Soft,
}

impl Default for Representative {
    fn default() -> Self {
        Self::Halving(Halving::default())
    }
}

/// Rotary positions of the two kinds of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rope {
    /// Positions while scanning.
    pub scan: ScanRope,
    /// Positions in the attention over the kept keys.
    pub attend: AttendRope,
}

impl Rope {
    /// Whether keys are cached already rotated at their true positions, so that no kernel rotates anything.
    #[must_use]
    pub const fn rotated_cache(self) -> bool {
        matches!(self.attend, AttendRope::None)
    }
}

/// Rotary positions in the scan (paper §3.3, appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanRope {
    /// Query one past the scan's window; left branch at position 0, right branch at 1.
    Relative,
    /// A key's position is the index of its chunk in the stage's ascending list.
    ChunkIndexed,
    /// All keys at position 0, all queries at the scan's window.
    Infllm,
    /// Keys far behind the query are drawn together linearly until all fit the trained context.
    DynamicExtend,
    /// Keys far behind the query share a position in groups of 16.
    SelfExtend,
    /// No rotation in the scan.
    None,
}

/// Rotary positions in the attention (paper §3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttendRope {
    /// Kept keys are packed to end one window before the query block's first query, sinks before them.
    Streaming,
    /// All kept keys and sinks at the distance of the window.
    Infllm,
    /// Three parts [`AttendRope::Streaming`], one part [`ScanRope::DynamicExtend`], blended in cosine and sine.
    DynamicExtend,
    /// As in [`ScanRope::SelfExtend`].
    SelfExtend,
    /// Queries and keys arrive rotated at their true positions.
    None,
}

/// Layers that do something else than the rest of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerRange {
    /// First layer, counted from 0.
    pub first: u32,
    /// Last layer, inclusive.
    pub last: u32,
    /// What these layers do, inheritance already resolved.
    pub phases: Phases,
}

impl Pipeline {
    /// For `check` alone: whoever calls this has checked every rule.
    #[doc(hidden)]
    #[must_use]
    pub const fn from_checked(
        name: Cow<'static, str>,
        doc: Cow<'static, str>,
        refresh: Refresh,
        base: Phases,
        overrides: Cow<'static, [LayerRange]>,
    ) -> Self {
        Self { name, doc, refresh, base, overrides }
    }

    /// The name it was declared under, such as `Paper3k`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its doc comment, lines joined by `\n`.
    #[must_use]
    pub fn doc(&self) -> &str {
        &self.doc
    }

    /// Which layers renew their masks in the same decoding step.
    #[must_use]
    pub const fn refresh(&self) -> Refresh {
        self.refresh
    }

    /// What layers do that no override names.
    #[must_use]
    pub fn base(&self) -> &Phases {
        &self.base
    }

    /// The overrides, by ascending layers; they never overlap.
    #[must_use]
    pub fn overrides(&self) -> &[LayerRange] {
        &self.overrides
    }

    /// What `layer` (counted from 0) does.
    #[must_use]
    pub fn layer(&self, layer: u32) -> &Phases {
        self.overrides
            .iter()
            .find(|range| (range.first..=range.last).contains(&layer))
            .map_or(&self.base, |range| &range.phases)
    }
}

/// A type declared by `pruning!`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no pipeline: inherit from a type that `pruning!` declared",
    label = "no type that `pruning!` declared"
)]
pub trait Pruning {
    /// What was declared, for the pipelines that inherit from it.
    const DECLARED: &'static Declared;

    /// The checked description.
    fn pipeline() -> &'static Pipeline;
}
