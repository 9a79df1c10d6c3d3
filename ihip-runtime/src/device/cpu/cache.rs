//! Keys, values and masks of one request.

use std::sync::Arc;

use ihip_dsl::rope::RopeTable;
use ihip_dsl::{KvType, LayerPlan, Plan, PrunedLayer, StagePlan};

use super::select::{BlockList, ChunkList};
use super::summaries::Summaries;
use crate::Step;
use crate::session::SEGMENT;

/// Keys, values and masks of one request, for every layer.
#[derive(Debug)]
pub struct CpuCache {
    pub(super) plan: Arc<Plan>,
    pub(super) capacity: usize,
    pub(super) rope: RopeTable,
    /// The step that is being computed.
    pub(super) step: Option<Step>,
    /// Whether the block lists of prefill calls are kept.
    pub(super) record: bool,
    pub(super) layers: Vec<LayerCache>,
}

/// One layer of the cache.
#[derive(Debug)]
pub(super) struct LayerCache {
    pub(super) store: Store,
    pub(super) masks: Masks,
}

/// What decoding steps reuse.
#[derive(Debug, Default)]
pub(super) struct Masks {
    /// Chunks that entered each stage in each ranking when the stage before last ran; the first stage's are never kept.
    pub(super) inputs: Vec<Vec<ChunkList>>,
    /// The final list in force in each ranking.
    pub(super) lists: Vec<BlockList>,
    /// Lists of the last call, one for each query block and ranking, where they are recorded.
    pub(super) recorded: Vec<BlockList>,
}

/// Keys and values of a layer, each `[kv_heads][positions][head_dim]`, and what its stages read in place of keys.
#[derive(Debug)]
pub(super) struct Store {
    keys: Vec<f32>,
    values: Vec<f32>,
    summaries: Vec<Summaries>,
    kv_heads: usize,
    head_dim: usize,
    /// What keys and values are rounded to when they are written; they are kept as f32.
    kv_type: KvType,
}

impl CpuCache {
    pub(super) fn new(plan: &Arc<Plan>, capacity: usize) -> Self {
        let layers = (0..plan.layers())
            .map(|layer| {
                let (stages, rankings) = match plan.decode(layer) {
                    LayerPlan::Dense => (0, 0),
                    LayerPlan::Pruned(pruned) => {
                        (pruned.stages.len(), plan.geometry().rankings(pruned.ranking) as usize)
                    }
                };
                LayerCache {
                    store: Store::new(plan, layer, capacity),
                    masks: Masks {
                        inputs: vec![Vec::new(); stages],
                        lists: vec![BlockList::default(); rankings],
                        ..Masks::default()
                    },
                }
            })
            .collect();
        let rope = RopeTable::new(plan.frequencies(), scan_positions(plan));
        Self { plan: Arc::clone(plan), capacity, rope, step: None, record: false, layers }
    }

    /// Bytes of everything that grows with `capacity`, and of the most that a prefill call takes besides.
    pub(super) fn bytes(plan: &Plan, capacity: usize) -> u64 {
        let geometry = plan.geometry();
        let (heads, head_dim) = (geometry.query_heads as usize, geometry.head_dim as usize);
        let keys_and_values = 2 * geometry.kv_heads as usize * capacity * head_dim;
        let store = |layer| (keys_and_values + Summaries::elements(plan, layer, capacity)) * size_of::<f32>();
        let stores: usize = (0..plan.layers()).map(store).sum();
        let lists = |layer: &LayerPlan| match layer {
            LayerPlan::Dense => 0,
            LayerPlan::Pruned(layer) => {
                let inputs: usize = (0..layer.stages.len()).map(|stage| layer.chunks(stage, capacity)).sum();
                let rankings = geometry.rankings(layer.ranking) as usize;
                (inputs + layer.blocks(capacity)) * rankings * size_of::<usize>()
            }
        };
        let rope = capacity.max(scan_positions(plan)) * head_dim * size_of::<f32>();
        let masks: usize = (0..plan.layers()).map(|layer| lists(plan.decode(layer))).sum();
        let rows = capacity.min(SEGMENT);
        let workspace = 2 * rows * heads * head_dim * size_of::<f32>()
            + (0..plan.layers()).map(|layer| lists(plan.prefill(layer)) * rows.div_ceil(16)).max().unwrap_or(0);
        (stores + rope + masks + workspace) as u64
    }
}

/// Positions that the scan rotates at, whatever the length is.
fn scan_positions(plan: &Plan) -> usize {
    let windows = plan.kinds().iter().map(|kind| match kind {
        LayerPlan::Dense => 0,
        LayerPlan::Pruned(layer) => layer.scan_window + 2,
    });
    windows.max().unwrap_or(0)
}

impl Store {
    fn new(plan: &Plan, layer: usize, positions: usize) -> Self {
        let geometry = plan.geometry();
        let (kv_heads, head_dim) = (geometry.kv_heads as usize, geometry.head_dim as usize);
        // Zeros come straight from the kernel and take no memory before they are written.
        let zeros = || vec![0.0; kv_heads * positions * head_dim];
        let summaries = Summaries::of_layer(plan, layer, positions);
        Self { keys: zeros(), values: zeros(), summaries, kv_heads, head_dim, kv_type: geometry.kv_type }
    }

    /// Query heads that share a key-value head.
    pub(super) fn group(&self, query_heads: usize) -> usize {
        query_heads / self.kv_heads
    }

    /// Keys of one head, `[positions][head_dim]`.
    pub(super) fn keys(&self, kv_head: usize) -> &[f32] {
        let length = self.keys.len() / self.kv_heads;
        &self.keys[kv_head * length..][..length]
    }

    /// Values of one head, `[positions][head_dim]`.
    pub(super) fn values(&self, kv_head: usize) -> &[f32] {
        let length = self.values.len() / self.kv_heads;
        &self.values[kv_head * length..][..length]
    }

    /// What a stage of `layer` reads in place of keys.
    ///
    /// # Panics
    /// Where it reads keys.
    pub(super) fn summaries(&self, layer: &PrunedLayer, stage: &StagePlan) -> &Summaries {
        Summaries::of_stage(&self.summaries, layer, stage).expect("a cache has what the stages of its plan read")
    }

    /// Writes the keys and values of `qkv`, whose rows have `columns` elements and end in keys and values, from
    /// `first` on; keys are rotated at their positions where `rope` is given. Chunks that they complete are summarised.
    pub(super) fn append(&mut self, qkv: &[f32], columns: usize, first: usize, rope: Option<&RopeTable>) {
        let width = self.kv_heads * self.head_dim;
        let length = self.keys.len() / self.kv_heads;
        for (row, qkv) in qkv.chunks_exact(columns).enumerate() {
            let position = first + row;
            let (keys, values) = qkv[columns - 2 * width..].split_at(width);
            let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let slot = head * length + position * self.head_dim;
                let slot = slot..slot + self.head_dim;
                self.keys[slot.clone()].copy_from_slice(key);
                self.values[slot.clone()].copy_from_slice(value);
                if let Some(rope) = rope {
                    rope.rotate(&mut self.keys[slot.clone()], position);
                }
                self.kv_type.round(&mut self.keys[slot.clone()]);
                self.kv_type.round(&mut self.values[slot]);
            }
        }
        let appended = first..first + qkv.len() / columns;
        for summaries in &mut self.summaries {
            let keys = |head: usize| &self.keys[head * length..][..length];
            summaries.append(keys, self.head_dim, appended.clone());
        }
    }
}
