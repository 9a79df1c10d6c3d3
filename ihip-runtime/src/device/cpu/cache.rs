//! Keys, values and masks of one request.

use std::sync::Arc;

use ihip_dsl::rope::RopeTable;
use ihip_dsl::{LayerPlan, Plan, PrunedLayer, StagePlan};

use super::select::{BlockList, ChunkList};
use super::summaries::Summaries;
use crate::Step;
use crate::kv::trace::PagesRead;
use crate::kv::{
    Allocate, Budget, Counts, Kind, KvError, Placement, Reader, Room, Row, Sequence, Shape, Store, Tally, Tier, Traffic,
};
use crate::session::SEGMENT;

/// Keys, values and masks of one request, for every layer.
#[derive(Debug)]
pub struct CpuCache {
    pub(super) plan: Arc<Plan>,
    pub(super) capacity: usize,
    pub(super) rope: RopeTable,
    /// The call that is being computed, and where its step began.
    pub(super) step: Option<Step>,
    pub(super) begun: usize,
    /// Whether the block lists of prefill calls are kept.
    pub(super) record: bool,
    /// Keys and values of all layers.
    store: Store,
    sequence: Sequence,
    tallies: Tallies,
    pub(super) layers: Vec<LayerCache>,
}

/// What keys and values of a request may take.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) budget: Budget,
    /// Tokens of the longest step.
    pub(super) rows: usize,
    /// Where the memory of both tiers comes from.
    pub(super) allocator: Arc<dyn Allocate>,
}

/// One layer of the cache, without its keys and values.
#[derive(Debug)]
pub(super) struct LayerCache {
    summaries: Vec<Summaries>,
    pub(super) masks: Masks,
}

/// Rows that were read, by who read them.
#[derive(Debug)]
struct Tallies {
    stages: Vec<Tally>,
    attend: Tally,
    /// Summarising chunks.
    summaries: Tally,
}

/// What decoding steps reuse.
#[derive(Debug, Default)]
pub(super) struct Masks {
    /// Chunks that entered each stage in each ranking when the stage before last ran; the first stage's are never kept.
    pub(super) inputs: Vec<Vec<ChunkList>>,
    /// Scores of the first stage's chunks in each ranking, as far as key-value heads that take turns have scored them since the
    /// stage was last renewed.
    pub(super) held: Vec<Vec<f32>>,
    /// The final list in force in each ranking.
    pub(super) lists: Vec<BlockList>,
    /// Lists of the last call, one for each query block and ranking, where they are recorded.
    pub(super) recorded: Vec<BlockList>,
}

/// One layer of a cache, as scan and attention read it.
#[derive(Clone, Copy)]
pub(super) struct LayerView<'a> {
    store: &'a Store,
    sequence: &'a Sequence,
    tallies: &'a Tallies,
    summaries: &'a [Summaries],
    layer: usize,
}

impl CpuCache {
    pub(super) fn new(plan: &Arc<Plan>, capacity: usize, limits: &Limits) -> Result<Self, KvError> {
        let layers = (0..plan.layers())
            .map(|layer| {
                let (stages, rankings) = match plan.decode(layer) {
                    LayerPlan::Dense => (0, 0),
                    LayerPlan::Pruned(pruned) => {
                        (pruned.stages.len(), plan.geometry().rankings(pruned.ranking) as usize)
                    }
                };
                LayerCache {
                    summaries: Summaries::of_layer(plan, layer, capacity),
                    masks: Masks {
                        inputs: vec![Vec::new(); stages],
                        lists: vec![BlockList::default(); rankings],
                        ..Masks::default()
                    },
                }
            })
            .collect();
        let shape = shape(plan, limits.rows);
        let stages = (0..plan.most_stages()).map(|_| Tally::default()).collect();
        Ok(Self {
            plan: Arc::clone(plan),
            capacity,
            rope: RopeTable::new(plan.frequencies(), scan_positions(plan)),
            step: None,
            begun: 0,
            record: false,
            store: Store::new(shape, Room::within(&shape, capacity, limits.budget)?, &limits.allocator)?,
            sequence: Sequence::default(),
            tallies: Tallies { stages, attend: Tally::default(), summaries: Tally::default() },
            layers,
        })
    }

    /// Where a cache of `capacity` tokens has room for them.
    pub(super) fn placement(plan: &Plan, capacity: usize, limits: &Limits) -> Result<Placement, KvError> {
        let shape = shape(plan, limits.rows);
        Ok(Placement::of_room(&Room::within(&shape, capacity, limits.budget)?, shape.page))
    }

    /// Bytes of keys and values of a cache of `capacity` tokens.
    pub(super) fn kv_bytes(plan: &Plan, capacity: usize) -> u64 {
        let shape = shape(plan, SEGMENT);
        2 * (shape.layers * capacity.div_ceil(shape.page)) as u64 * shape.page_bytes()
    }

    /// Bytes of keys and values of such a cache in a tier; nothing where the budget does not hold them.
    pub(super) fn tier_bytes(plan: &Plan, capacity: usize, limits: &Limits, tier: Tier) -> u64 {
        let shape = shape(plan, limits.rows);
        let Ok(Room { keys, values }) = Room::within(&shape, capacity, limits.budget) else { return 0 };
        let slots = match tier {
            Tier::Gpu => keys.gpu + values.gpu,
            Tier::Host => keys.host + values.host,
        };
        slots as u64 * shape.layers as u64 * shape.page_bytes()
    }

    /// Bytes of everything else that grows with `capacity`, and of the most that a prefill call takes besides.
    pub(super) fn other_bytes(plan: &Plan, capacity: usize) -> u64 {
        let geometry = plan.geometry();
        let (heads, head_dim) = (geometry.query_heads as usize, geometry.head_dim as usize);
        let summaries: usize = (0..plan.layers()).map(|layer| Summaries::elements(plan, layer, capacity)).sum();
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
        (summaries * size_of::<f32>() + rope + masks + workspace) as u64
    }

    /// Starts a step: what the steps before wrote is whole, pages move, and the step's tokens get room.
    pub(super) fn begin(&mut self, step: &Step) -> Result<(), KvError> {
        let Self { store, sequence, .. } = self;
        if let Some(written) = step.start.checked_sub(sequence.length()) {
            store.reserve(sequence, written)?;
            store.commit(sequence, written);
        }
        store.settle();
        store.reserve(sequence, step.rows)?;
        self.rope.extend(step.start + step.rows);
        self.begun = step.start;
        self.step = Some(step.clone());
        Ok(())
    }

    /// One layer as scan and attention read it, the rotary table, and what the layer keeps of its masks.
    pub(super) fn layer(&mut self, layer: usize) -> (LayerView<'_>, &RopeTable, &mut Masks) {
        let Self { store, sequence, tallies, rope, layers, .. } = self;
        let LayerCache { summaries, masks } = &mut layers[layer];
        (LayerView { store, sequence, tallies, summaries, layer }, rope, masks)
    }

    /// Writes the keys and values of the step in `qkv`, whose rows have `columns` elements and end in keys and values, to
    /// `layer`; keys are rotated at their positions where they are cached that way. Chunks that they complete are
    /// summarised.
    pub(super) fn append(&mut self, layer: usize, qkv: &[f32], columns: usize) {
        let (first, _) = self.step_rows();
        let rope = self.plan.rotated_cache(layer).then_some(&self.rope);
        // Rows are rounded to the type and kept as f32.
        let kv_type = self.plan.geometry().kv_type;
        let Self { store, sequence, tallies, layers, .. } = self;
        let Shape { kv_heads, head_dim, .. } = *store.shape();
        let width = kv_heads * head_dim;
        for (token, qkv) in (first..).zip(qkv.chunks_exact(columns)) {
            let (keys, values) = qkv[columns - 2 * width..].split_at(width);
            let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let row = |kind| Row { layer, kind, head, token };
                let cached = store.row_mut(sequence, row(Kind::Values));
                cached.copy_from_slice(value);
                kv_type.round(cached);
                let cached = store.row_mut(sequence, row(Kind::Keys));
                cached.copy_from_slice(key);
                if let Some(rope) = rope {
                    rope.rotate(cached, token);
                }
                kv_type.round(cached);
            }
        }
        let appended = first..first + qkv.len() / columns;
        for summaries in &mut layers[layer].summaries {
            let reader = |head| store.reader(sequence, (layer, Kind::Keys, head), &tallies.summaries);
            let readers: Vec<Reader<'_>> = (0..kv_heads).map(reader).collect();
            summaries.append(|head, position| readers[head].row(position), appended.clone());
        }
    }

    /// First position and tokens of the step.
    pub(super) fn step_rows(&self) -> (usize, usize) {
        let step = self.step.as_ref().expect("begin comes before the operations of a step");
        (step.start, step.rows)
    }

    /// Pages that are on their way between the tiers.
    #[must_use]
    pub fn moving(&self) -> usize {
        self.store.moving()
    }

    pub(super) fn record_pages(&mut self, record: bool) {
        self.store.record_reads(record);
    }

    /// Pages that were read in `layer` since this was last asked.
    pub(super) fn pages_read(&self, layer: usize) -> PagesRead {
        Kind::ALL.map(|kind| self.store.pages_read(&self.sequence, layer, kind))
    }

    /// A row of a token that was appended, wherever it is, for a test: the cache does not note that it was read.
    #[must_use]
    pub fn peek(&self, row: Row) -> &[f32] {
        self.store.peek(&self.sequence, row)
    }

    /// Spoils a row where it is, so that a test can see that it would notice.
    pub fn spoil(&mut self, row: Row) {
        self.store.spoil(&self.sequence, row);
    }

    /// What it did so far.
    pub(super) fn traffic(&self) -> Traffic {
        let Tallies { stages, attend, summaries } = &self.tallies;
        let Counts { promotions, evictions, .. } = self.store.counts();
        let shape = self.store.shape();
        let mut traffic = Traffic {
            stages: stages.iter().map(Tally::reads).collect(),
            attend: attend.reads(),
            promotions,
            evictions,
            promoted_bytes: promotions * shape.page_bytes(),
            evicted_bytes: evictions * shape.page_bytes(),
            ..Traffic::default()
        };
        let missed = traffic.reads().misses + summaries.reads().misses;
        traffic.missed_bytes = missed * (shape.head_dim * size_of::<f32>()) as u64;
        traffic
    }

    /// Where the tokens are that steps before this one wrote.
    pub(super) fn residence(&self) -> Placement {
        self.store.residence(&self.sequence)
    }
}

/// Sizes of the keys and values of a cache whose steps have at most `rows` tokens.
fn shape(plan: &Plan, rows: usize) -> Shape {
    let geometry = plan.geometry();
    Shape {
        layers: plan.layers(),
        kv_heads: geometry.kv_heads as usize,
        head_dim: geometry.head_dim as usize,
        page: geometry.page as usize,
        rows,
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

impl<'a> LayerView<'a> {
    /// Query heads that share a key-value head.
    pub(super) fn group(&self, query_heads: usize) -> usize {
        query_heads / self.store.shape().kv_heads
    }

    fn reader(&self, kind: Kind, kv_head: usize, tally: &'a Tally) -> Reader<'a> {
        self.store.reader(self.sequence, (self.layer, kind, kv_head), tally)
    }

    /// Reads keys of one head, to attend to.
    pub(super) fn keys(&self, kv_head: usize) -> Reader<'a> {
        self.reader(Kind::Keys, kv_head, &self.tallies.attend)
    }

    /// Reads values of one head.
    pub(super) fn values(&self, kv_head: usize) -> Reader<'a> {
        self.reader(Kind::Values, kv_head, &self.tallies.attend)
    }

    /// Reads keys of one head, for a stage of the scan.
    pub(super) fn scanned_keys(&self, stage: usize, kv_head: usize) -> Reader<'a> {
        self.reader(Kind::Keys, kv_head, &self.tallies.stages[stage])
    }

    /// What a stage of `layer` reads in place of keys.
    ///
    /// # Panics
    /// Where it reads keys.
    pub(super) fn summaries(&self, layer: &PrunedLayer, stage: &StagePlan) -> &'a Summaries {
        Summaries::of_stage(self.summaries, layer, stage).expect("a cache has what the stages of its plan read")
    }
}
