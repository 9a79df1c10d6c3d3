//! From a pipeline and a geometry to the constants that kernels and CPU device run with.
//!
//! Everything here is arithmetic on checked numbers; the only thing that can still be wrong is a layer that the
//! model does not have. The reference states the same arithmetic on its own, so that each checks the other.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::renewal::least_common_multiple;
use crate::{
    AttendRope, Attention, Geometry, LayerPruning, Pipeline, Ranking, Refresh, Renewal, Representative, ScanRope,
    Scoring, Turn,
};

/// What every layer of a model does, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    name: String,
    geometry: Geometry,
    frequencies: Vec<f64>,
    layers: Vec<PhaseKinds>,
    kinds: Vec<LayerPlan>,
    /// Decoding steps by which each layer's refresh counter is ahead.
    offsets: Vec<usize>,
    /// Steps over which each layer spreads a renewal of its first stage.
    turns: Vec<usize>,
}

/// Indices into [`Plan::kinds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PhaseKinds {
    prefill: usize,
    decode: usize,
}

/// What a layer does in one phase.
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
    /// Window while scanning, `w_s = max(0, w − l_0)`: chunks are admitted one chunk early (paper §3.1).
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
        layers.saturating_sub(1)
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
            offsets: Vec::new(),
            turns: Vec::new(),
        };
        for layer in 0..layers {
            let phases = pipeline.layer(layer);
            let kinds = PhaseKinds { prefill: plan.kind(&phases.prefill), decode: plan.kind(&phases.decode) };
            plan.layers.push(kinds);
        }
        (plan.offsets, plan.turns) = match pipeline.refresh() {
            Refresh::Together => (vec![0; layers as usize], vec![1; layers as usize]),
            Refresh::Staggered => (plan.staggered(), plan.spread()),
        };
        Ok(plan)
    }

    /// Every layer dense: the baseline that pipelines are compared with.
    #[must_use]
    pub fn dense(geometry: Geometry, frequencies: Vec<f64>, layers: u32) -> Self {
        Self {
            name: "dense".to_owned(),
            geometry,
            frequencies,
            layers: vec![PhaseKinds { prefill: 0, decode: 0 }; layers as usize],
            kinds: vec![LayerPlan::Dense],
            offsets: vec![0; layers as usize],
            turns: vec![1; layers as usize],
        }
    }

    /// The plan of `layer` alone, as a model of one layer would have it: what is measured.
    ///
    /// # Panics
    /// Where `layer` is not below [`Plan::layers`].
    #[must_use]
    pub fn alone(&self, layer: usize) -> Self {
        let mut plan = Self { layers: Vec::new(), kinds: Vec::new(), offsets: vec![0], turns: vec![1], ..self.clone() };
        for kind in self.phases(layer) {
            if !plan.kinds.contains(kind) {
                plan.kinds.push(kind.clone());
            }
        }
        let decode = plan.kinds.len() - 1;
        plan.layers.push(PhaseKinds { prefill: 0, decode });
        plan
    }

    /// Index of what a layer does, known already or not.
    fn kind(&mut self, attention: &Attention) -> usize {
        let kind = match attention {
            Attention::Dense => LayerPlan::Dense,
            Attention::Pruned(pruning) => LayerPlan::Pruned(PrunedLayer::new(pruning)),
        };
        self.kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        })
    }

    /// Offsets that spread renewals evenly over steps: those of the first stage, which cost most, then those of the next
    /// ones. A layer takes, of the offsets at which the fewest layers before it renew their first stage, and of these their
    /// second and so on, the one nearest to its part of the interval.
    fn staggered(&self) -> Vec<usize> {
        // A layer's stages, each with its interval.
        let stages =
            |layer| self.decode(layer).stages().iter().map(|stage| (stage.index, stage.refresh)).collect::<Vec<_>>();
        let stages: Vec<_> = (0..self.layers()).map(stages).collect();
        let staged = stages.iter().filter(|stages| !stages.is_empty()).count();
        // Layers that renew a stage, by what its interval leaves of their offset.
        let mut renewals: BTreeMap<(usize, usize), Vec<usize>> =
            stages.iter().flatten().map(|&(stage, interval)| ((stage, interval), vec![0; interval])).collect();
        let mut before = 0;
        let offset = |stages: &Vec<(usize, usize)>| {
            let Some(&(_, first)) = stages.first() else { return 0 };
            let even = before * first / staged;
            before += 1;
            let load = |offset: usize| -> Vec<usize> {
                stages.iter().map(|stage| renewals[stage][offset % stage.1]).collect()
            };
            let away = |offset: usize| offset.abs_diff(even).min(first - offset.abs_diff(even));
            let offset = (0..first).min_by_key(|&offset| (load(offset), away(offset))).unwrap_or(0);
            for stage in stages {
                renewals.entry(*stage).and_modify(|layers| layers[offset % stage.1] += 1);
            }
            offset
        };
        stages.iter().map(offset).collect()
    }

    /// Steps over which the key-value heads of each layer take turns at the first stage: as many as its interval has for
    /// each layer that renews one, where there are so many heads.
    fn spread(&self) -> Vec<usize> {
        let first = |layer| self.decode(layer).stages().first().map(|stage| stage.refresh);
        let intervals: Vec<_> = (0..self.layers()).map(first).collect();
        let staged = intervals.iter().flatten().count();
        let turns = |interval: usize| (interval / staged).clamp(1, self.geometry.kv_heads as usize);
        intervals.into_iter().map(|interval| interval.map_or(1, turns)).collect()
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

    /// What `layer` does while the prompt is read.
    ///
    /// # Panics
    /// Where `layer` is not below [`Plan::layers`]; so do the other questions about a layer.
    #[must_use]
    pub fn prefill(&self, layer: usize) -> &LayerPlan {
        &self.kinds[self.layers[layer].prefill]
    }

    /// What `layer` does while tokens are generated.
    #[must_use]
    pub fn decode(&self, layer: usize) -> &LayerPlan {
        &self.kinds[self.layers[layer].decode]
    }

    /// What `layer` does in prefill and in decode: whatever either of them reads, both have to keep up.
    #[must_use]
    pub fn phases(&self, layer: usize) -> [&LayerPlan; 2] {
        [self.prefill(layer), self.decode(layer)]
    }

    /// Whether `layer` caches keys rotated at their true positions; its two phases agree on it.
    #[must_use]
    pub fn rotated_cache(&self, layer: usize) -> bool {
        self.decode(layer).rotated_cache()
    }

    /// Decoding steps after which the patterns of renewals come again; `None` where that is more than a `u128` holds.
    #[must_use]
    pub fn refresh_period(&self) -> Option<u128> {
        least_common_multiple(self.refresh_intervals())
    }

    /// Stages of the layer that has most of them, in prefill or decoding.
    #[must_use]
    pub fn most_stages(&self) -> usize {
        self.kinds.iter().map(|kind| kind.stages().len()).max().unwrap_or(0)
    }

    /// Intervals at which decoding renews a stage of any layer, each once.
    #[must_use]
    pub fn refresh_intervals(&self) -> BTreeSet<usize> {
        let stages = (0..self.layers()).flat_map(|layer| self.decode(layer).stages());
        stages.map(|stage| stage.refresh).collect()
    }

    /// What decoding step `step` (from 0) renews of `layer`.
    ///
    /// Step 0 renews everything: no mask crosses from prefill. A renewal of the first stage that would have to begin
    /// before step 1 to be spread is not.
    #[must_use]
    pub fn renewal(&self, layer: usize, step: usize) -> Renewal {
        let (offset, turns) = (self.offsets[layer], self.turns[layer]);
        let restart = |step| self.decode(layer).restart(if step == 0 { 0 } else { step + offset });
        // Of the steps in which heads take turns, the last cuts.
        let cut = (step.max(1)..step + turns).find(|cut| *cut >= turns && restart(*cut) == Some(0));
        let turn = cut
            .filter(|_| turns > 1 && step > 0)
            .map(|cut| Turn::of(turns - 1 - (cut - step), turns, self.geometry.kv_heads as usize));
        Renewal { restart: restart(step), turn }
    }

    /// Steps over which a renewal of the first stage of `layer` is spread: where there are several, key-value heads take turns
    /// at it, and its scores are kept from step to step.
    #[must_use]
    pub fn turns(&self, layer: usize) -> usize {
        self.turns[layer]
    }

    /// Index in [`Plan::kinds`] of what `layer` does while the prompt is read.
    #[must_use]
    pub fn prefill_kind(&self, layer: usize) -> usize {
        self.layers[layer].prefill
    }

    /// Index in [`Plan::kinds`] of what `layer` does while tokens are generated.
    #[must_use]
    pub fn decode_kind(&self, layer: usize) -> usize {
        self.layers[layer].decode
    }

    /// The distinct things that layers do in one phase or the other: one set of kernels each.
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

    /// Stages in the order they run; none where the layer is dense.
    #[must_use]
    pub fn stages(&self) -> &[StagePlan] {
        match self {
            Self::Dense => &[],
            Self::Pruned(layer) => &layer.stages,
        }
    }

    /// The stage from which a refresh counter of `step` renews the mask; `None` reuses the last list.
    #[must_use]
    fn restart(&self, step: usize) -> Option<usize> {
        self.stages().iter().position(|stage| step.is_multiple_of(stage.refresh))
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
