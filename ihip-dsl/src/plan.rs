//! From a pipeline and a geometry to the constants that kernels and CPU device run with.
//!
//! Everything here is arithmetic on checked numbers; the only thing that can still be wrong is a layer that the
//! model does not have. The reference states the same arithmetic on its own, so that each checks the other.

use thiserror::Error;

use crate::{AttendRope, Geometry, LayerPruning, Pipeline, Ranking, Representative, ScanRope, Scoring};

/// What every layer of a model does, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    name: String,
    geometry: Geometry,
    frequencies: Vec<f64>,
    /// Index into `kinds`, one entry a layer.
    layers: Vec<usize>,
    kinds: Vec<LayerPlan>,
}

/// What a layer does.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerPlan {
    /// Causal attention over every key, rotated at true positions.
    Dense,
    /// Attention over sinks, window and the blocks that the stages keep.
    Pruned(PrunedLayer),
}

/// Constants of a pruned layer.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedLayer {
    /// Tokens at the start that every query sees.
    pub sink: usize,
    /// Most recent tokens that every query sees, `w`.
    pub window: usize,
    /// Window while scanning, `w_s = max(0, w − l_0)`: chunks are admitted one chunk early (spec of paper §3.1).
    pub scan_window: usize,
    /// Queries that share a block list in the attention.
    pub query_block: usize,
    /// Tokens of a block of the final list, `b_k`: the last chunk size; 1 where there are no stages.
    pub block: usize,
    /// Blocks that the last cut keeps, `K_out / b_k`.
    pub keep_blocks: usize,
    /// Stages in the order they run.
    pub stages: Vec<StagePlan>,
    /// Query heads that share one ranking.
    pub ranking: Ranking,
    /// Rotary positions in the attention.
    pub attend_rope: AttendRope,
}

/// Constants of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePlan {
    /// Number of the stage, from 0.
    pub index: usize,
    /// Tokens in a chunk, `l_i`.
    pub chunk: usize,
    /// Halvings of a chunk, `⌊log2 l_i⌋ + 1`, each with two probes; 0 where the stage does not halve.
    pub halvings: usize,
    /// Queries of a block, `b_q`.
    pub query_block: usize,
    /// Queries averaged into one row, `s_q`.
    pub query_stride: usize,
    /// Chunks *of the stage before* that enter this stage, `K_i / l_{i−1}`; `None` for the first.
    pub keep_chunks: Option<usize>,
    /// Chunks that one chunk of the stage before is split into, `l_{i−1} / l_i`; 1 for the first.
    pub split: usize,
    /// Query blocks of this stage in one of the stage before; 1 for the first.
    pub block_ratio: usize,
    /// Decoding steps between two renewals.
    pub refresh: usize,
    /// How a chunk's score comes about.
    pub scoring: Scoring,
    /// Rotary positions while this stage scans.
    pub rope: ScanRope,
}

impl StagePlan {
    /// Rows of averaged queries that score one block, `b_q / s_q`.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.query_block / self.query_stride
    }
}

/// A pipeline that does not fit the model.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// An override names a layer that is not there.
    #[error(
        "pipeline {pipeline} names layer {layer}, but the model has {layers} layers (0 to {})",
        layers - 1
    )]
    NoSuchLayer {
        /// Name of the pipeline.
        pipeline: String,
        /// The layer it names.
        layer: u32,
        /// Layers of the model, at least 1.
        layers: u32,
    },
}

impl Plan {
    /// Plans `pipeline` for a model of `layers` layers.
    ///
    /// `frequencies` are the rotary inverse frequencies, `head_dim / 2` of them, in radians a position.
    ///
    /// # Errors
    /// [`PlanError::NoSuchLayer`] where an override reaches beyond the model.
    pub fn new(pipeline: &Pipeline, geometry: Geometry, frequencies: Vec<f64>, layers: u32) -> Result<Self, PlanError> {
        for range in pipeline.overrides() {
            if range.last >= layers {
                return Err(PlanError::NoSuchLayer { pipeline: pipeline.name().to_owned(), layer: range.last, layers });
            }
        }
        let mut plan = Self {
            name: pipeline.name().to_owned(),
            geometry,
            frequencies,
            layers: Vec::with_capacity(layers as usize),
            kinds: Vec::new(),
        };
        for layer in 0..layers {
            let kind = LayerPlan::Pruned(PrunedLayer::new(pipeline.layer(layer)));
            plan.push(kind);
        }
        Ok(plan)
    }

    /// Every layer dense: the baseline that pipelines are compared with.
    #[must_use]
    pub fn dense(geometry: Geometry, frequencies: Vec<f64>, layers: u32) -> Self {
        Self {
            name: "dense".to_owned(),
            geometry,
            frequencies,
            layers: vec![0; layers as usize],
            kinds: vec![LayerPlan::Dense],
        }
    }

    fn push(&mut self, kind: LayerPlan) {
        let index = self.kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        });
        self.layers.push(index);
    }

    /// Name of the pipeline, or `dense`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shape of the layers.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Rotary inverse frequencies, `head_dim / 2` of them, in radians a position.
    #[must_use]
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// What `layer` does.
    ///
    /// # Panics
    /// Where `layer` is not below [`Plan::layers`].
    #[must_use]
    pub fn layer(&self, layer: usize) -> &LayerPlan {
        &self.kinds[self.layers[layer]]
    }

    /// Index of what `layer` does in [`Plan::kinds`].
    #[must_use]
    pub fn kind_of(&self, layer: usize) -> usize {
        self.layers[layer]
    }

    /// The distinct things that layers do: one set of kernels each.
    #[must_use]
    pub fn kinds(&self) -> &[LayerPlan] {
        &self.kinds
    }
}

impl LayerPlan {
    /// Whether keys are cached rotated at their true positions.
    #[must_use]
    pub fn rotated_cache(&self) -> bool {
        match self {
            Self::Dense => true,
            Self::Pruned(layer) => layer.attend_rope == AttendRope::None,
        }
    }

    /// The stage from which decoding step `step` (from 0) renews the mask; `None` reuses the last list.
    #[must_use]
    pub fn restart(&self, step: usize) -> Option<usize> {
        match self {
            Self::Dense => None,
            Self::Pruned(layer) => layer.stages.iter().position(|stage| step.is_multiple_of(stage.refresh)),
        }
    }
}

impl PrunedLayer {
    /// Constants of a checked description.
    #[must_use]
    pub fn new(pruning: &LayerPruning) -> Self {
        let first_chunk = pruning.stages.first().map_or(0, |stage| stage.chunk as usize);
        let block = pruning.stages.last().map_or(1, |stage| stage.chunk as usize);
        let stages = pruning
            .stages
            .iter()
            .enumerate()
            .map(|(index, stage)| {
                let before = index.checked_sub(1).map(|before| pruning.stages[before]);
                StagePlan {
                    index,
                    chunk: stage.chunk as usize,
                    halvings: match stage.scoring.representative {
                        Representative::Halving(_) => stage.chunk.ilog2() as usize + 1,
                        Representative::Mean | Representative::MinMax | Representative::Exact => 0,
                    },
                    query_block: stage.query_block as usize,
                    query_stride: stage.query_stride as usize,
                    keep_chunks: before.zip(stage.keep).map(|(before, keep)| (keep / before.chunk) as usize),
                    split: before.map_or(1, |before| (before.chunk / stage.chunk) as usize),
                    block_ratio: before.map_or(1, |before| (before.query_block / stage.query_block) as usize),
                    refresh: stage.refresh as usize,
                    scoring: stage.scoring,
                    rope: stage.rope.unwrap_or(pruning.rope.scan),
                }
            })
            .collect();
        Self {
            sink: pruning.sink as usize,
            window: pruning.window as usize,
            scan_window: (pruning.window as usize).saturating_sub(first_chunk),
            query_block: pruning.query_block as usize,
            block,
            keep_blocks: pruning.keep as usize / block,
            stages,
            ranking: pruning.ranking,
            attend_rope: pruning.rope.attend,
        }
    }

    /// Chunks in the list of `stage` when the grid is laid out for `t_max` keys (`n_i`, the same for every block).
    #[must_use]
    pub fn chunks(&self, stage: usize, t_max: usize) -> usize {
        let stage = &self.stages[stage];
        match stage.keep_chunks {
            None => t_max.saturating_sub(self.sink + self.window).div_ceil(stage.chunk),
            Some(keep) => keep.min(self.chunks(stage.index - 1, t_max)) * stage.split,
        }
    }

    /// Blocks in the final list when the grid is laid out for `t_max` keys.
    #[must_use]
    pub fn blocks(&self, t_max: usize) -> usize {
        match self.stages.len() {
            0 => 0,
            stages => self.keep_blocks.min(self.chunks(stages - 1, t_max)),
        }
    }

    /// Keys that a query far from the start attends to: sinks, window and the last cut.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.sink + self.window + self.keep_blocks * self.block
    }
}
