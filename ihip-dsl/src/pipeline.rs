//! The validated description of a pruning pipeline: plain data, the same for plan, emitter and reference.

use std::borrow::Cow;

use serde::Serialize;

/// A pruning pipeline that has passed every rule of [`crate::check`].
///
/// Fields are private so that nobody can make an unchecked one; all of it is `const`-constructible so that a
/// declaration costs nothing at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pipeline {
    name: Cow<'static, str>,
    doc: Cow<'static, str>,
    base: LayerPruning,
    overrides: Cow<'static, [LayerRange]>,
}

/// What one layer does: the stages, the last cut and the rotary positions of scan and attention.
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
    pub pruning: LayerPruning,
}

impl Pipeline {
    /// For `check` and for the expansion of `pruning!` alone: whoever calls this has checked every rule.
    #[doc(hidden)]
    #[must_use]
    pub const fn from_checked(
        name: Cow<'static, str>,
        doc: Cow<'static, str>,
        base: LayerPruning,
        overrides: Cow<'static, [LayerRange]>,
    ) -> Self {
        Self { name, doc, base, overrides }
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

    /// What layers do that no override names.
    #[must_use]
    pub fn base(&self) -> &LayerPruning {
        &self.base
    }

    /// The overrides, in the order they were declared; they never overlap.
    #[must_use]
    pub fn overrides(&self) -> &[LayerRange] {
        &self.overrides
    }

    /// What `layer` (counted from 0) does.
    #[must_use]
    pub fn layer(&self, layer: u32) -> &LayerPruning {
        self.overrides
            .iter()
            .find(|range| (range.first..=range.last).contains(&layer))
            .map_or(&self.base, |range| &range.pruning)
    }
}

/// A type declared by `pruning!`.
pub trait Pruning {
    /// The checked description.
    fn pipeline() -> &'static Pipeline;
}
