//! Random small problems: any valid description, any head ratio, unit-variance queries, keys and values.

use ihip_dsl::reference::Problem;
use ihip_dsl::{
    AttendRope, Attention, ChunkScore, Descent, Halving, KvType, LayerPruning, LayerRange, Phases, Pipeline, Probe,
    QueryReduction, Ranking, Refresh, Representative, Rope, ScanRope, Scores, Scoring, Stage,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Elements of a head in every sample.
pub const HEAD_DIM: usize = 8;

/// Positions that a sample's model was trained on, unless something else is drawn: more than a sample has keys.
pub const TRAINED: usize = 8192;

/// A problem that owns its tensors.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What the layer does.
    pub pruning: LayerPruning,
    /// Query heads.
    pub query_heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Keys that the scan's grid is laid out for.
    pub t_max: usize,
    /// Positions that the model was trained on.
    pub trained: usize,
    /// Position of the first query.
    pub first_position: usize,
    /// Rotary inverse frequencies.
    pub frequencies: Vec<f64>,
    /// `[queries, query_heads, HEAD_DIM]`.
    pub queries: Vec<f32>,
    /// `[keys, kv_heads, HEAD_DIM]`.
    pub keys: Vec<f32>,
    /// `[keys, kv_heads, HEAD_DIM]`.
    pub values: Vec<f32>,
}

/// Shape of a sample's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Query heads that share one.
    pub group: usize,
    /// Position of the first query.
    pub first_position: usize,
    /// Queries.
    pub queries: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Sample {
    /// Random tensors of `shape`, with the grid laid out for the keys that there are.
    #[must_use]
    pub fn new(pruning: LayerPruning, shape: Shape) -> Self {
        let mut random = Random(shape.seed);
        let query_heads = shape.kv_heads * shape.group;
        let keys = shape.first_position + shape.queries;
        Self {
            pruning,
            query_heads,
            kv_heads: shape.kv_heads,
            t_max: keys,
            trained: TRAINED,
            first_position: shape.first_position,
            frequencies: (0..HEAD_DIM / 2).map(|pair| 10_000_f64.powf(-2.0 * pair as f64 / HEAD_DIM as f64)).collect(),
            queries: random.floats(shape.queries * query_heads * HEAD_DIM),
            keys: random.floats(keys * shape.kv_heads * HEAD_DIM),
            values: random.floats(keys * shape.kv_heads * HEAD_DIM),
        }
    }

    /// The sample for the reference.
    #[must_use]
    pub fn problem(&self) -> Problem<'_> {
        Problem {
            pruning: &self.pruning,
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            head_dim: HEAD_DIM,
            kv_type: KvType::F32,
            query_scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            frequencies: &self.frequencies,
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            first_position: self.first_position,
            t_max: self.t_max,
            trained: self.trained,
        }
    }

    /// Number of queries.
    #[must_use]
    pub fn query_count(&self) -> usize {
        self.queries.len() / (self.query_heads * HEAD_DIM)
    }

    /// One query, as a decoding step of the reference: with the keys that are there by then.
    #[must_use]
    pub fn step(&self, row: usize) -> Problem<'_> {
        let (query, key) = (self.query_heads * HEAD_DIM, self.kv_heads * HEAD_DIM);
        let position = self.first_position + row;
        Problem {
            queries: &self.queries[row * query..(row + 1) * query],
            keys: &self.keys[..(position + 1) * key],
            values: &self.values[..(position + 1) * key],
            first_position: position,
            t_max: position + 1,
            ..self.problem()
        }
    }

    /// The sample with keys that are rotated at their true positions when they are cached, and nowhere else.
    #[must_use]
    pub fn with_rotated_cache(mut self) -> Self {
        self.pruning = rotated_cache(self.pruning);
        self
    }

    /// The queries `rows` alone, as a later call of the same request.
    #[must_use]
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        let width = self.query_heads * HEAD_DIM;
        Self {
            first_position: self.first_position + rows.start,
            queries: self.queries[rows.start * width..rows.end * width].to_vec(),
            ..self.clone()
        }
    }

    /// The sample with as many of its queries as there may be without a stage that gives a query block the list of a
    /// later one, because its query blocks are smaller than those of the stage before and the end is ragged.
    #[must_use]
    pub fn without_ragged_parents(&self) -> Self {
        let aligned = |queries: usize| {
            self.pruning.stages.windows(2).all(|pair| {
                let ratio = (pair[0].query_block / pair[1].query_block) as usize;
                let parents = queries.div_ceil(pair[0].query_block as usize);
                let children = queries.div_ceil(pair[1].query_block as usize);
                parents == 1 || parents * ratio == children
            })
        };
        let queries = (1..=self.query_count()).rev().find(|&queries| aligned(queries));
        self.rows(0..queries.expect("a single query is aligned"))
    }
}

/// SplitMix64: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator to those who draw")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Numbers of mean 0 and variance 1, near enough normal.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
    }
}

/// Every way to place rotary positions that the language allows.
pub fn ropes() -> impl Strategy<Value = Rope> {
    let scan = [
        ScanRope::Relative,
        ScanRope::ChunkIndexed,
        ScanRope::Infllm,
        ScanRope::DynamicExtend,
        ScanRope::SelfExtend,
        ScanRope::None,
    ];
    let attend = [AttendRope::Streaming, AttendRope::Infllm, AttendRope::DynamicExtend, AttendRope::SelfExtend];
    let mut ropes = vec![Rope { scan: ScanRope::None, attend: AttendRope::None }];
    for scan in scan {
        ropes.extend(attend.map(|attend| Rope { scan, attend }));
    }
    select(ropes)
}

/// Every way to score a chunk; by halving half of the time.
pub fn scorings() -> impl Strategy<Value = Scoring> {
    let probe = select(vec![Probe::Middle, Probe::First]);
    let chunk_score = select(vec![ChunkScore::RunningMax, ChunkScore::Last]);
    let descent = select(vec![Descent::Each, Descent::KvGroup]);
    let halving = (probe, chunk_score, descent)
        .prop_map(|(probe, chunk_score, descent)| Halving { probe, chunk_score, descent })
        .prop_map(Representative::Halving);
    let whole = select(vec![Representative::Mean, Representative::MinMax, Representative::Exact]);
    let query_reduction = select(vec![QueryReduction::Max, QueryReduction::Mean]);
    let scores = select(vec![Scores::Raw, Scores::Soft]);
    (prop_oneof![halving, whole], query_reduction, scores)
        .prop_map(|(representative, query_reduction, scores)| Scoring { representative, query_reduction, scores })
}

/// Valid descriptions in every word of the language: up to three stages, query blocks that shrink or not, chunks that
/// are powers of two or not.
pub fn prunings() -> impl Strategy<Value = LayerPruning> {
    let ranking = select(vec![Ranking::All, Ranking::KvGroup, Ranking::Each]);
    let words = prop::collection::vec((scorings(), prop::option::weighted(0.3, ropes())), 3);
    (published_prunings(), ropes(), ranking, words).prop_map(|(mut pruning, rope, ranking, words)| {
        pruning.rope.attend = rope.attend;
        if !pruning.stages.is_empty() {
            pruning.ranking = ranking;
            pruning.rope.scan = rope.scan;
        }
        for (stage, (scoring, of_stage)) in pruning.stages.to_mut().iter_mut().zip(words) {
            stage.scoring = scoring;
            stage.rope = of_stage.map(|rope| rope.scan);
            if rope.rotated_cache() {
                stage.rope = stage.rope.map(|_| ScanRope::None);
            } else if matches!(scoring.representative, Representative::Mean | Representative::MinMax)
                && matches!(stage.rope.unwrap_or(rope.scan), ScanRope::DynamicExtend | ScanRope::SelfExtend)
            {
                // No summary stands for keys that move against each other.
                stage.rope = Some(ScanRope::ChunkIndexed);
            }
        }
        pruning
    })
}

/// The same over keys that are rotated when they are cached, and nowhere else.
fn rotated_cache(mut pruning: LayerPruning) -> LayerPruning {
    pruning.rope = Rope { scan: ScanRope::None, attend: AttendRope::None };
    pruning.stages.to_mut().iter_mut().for_each(|stage| stage.rope = None);
    pruning
}

/// Phases of a layer: the same in both, one of them or both dense, or two descriptions.
fn phases() -> impl Strategy<Value = Phases> {
    (prunings(), prunings(), 0..6_usize).prop_map(|(pruning, other, kind)| match kind {
        0 => Phases { prefill: Attention::Dense, decode: Attention::Dense },
        1 => Phases { prefill: Attention::Dense, decode: Attention::Pruned(rotated_cache(pruning)) },
        2 => Phases { prefill: Attention::Pruned(rotated_cache(pruning)), decode: Attention::Dense },
        3 | 4 if pruning.rope.rotated_cache() == other.rope.rotated_cache() => {
            Phases { prefill: Attention::Pruned(pruning), decode: Attention::Pruned(other) }
        }
        _ => pruning.into(),
    })
}

/// Valid pipelines in every word of the language, for models of three layers or more.
pub fn pipelines() -> impl Strategy<Value = Pipeline> {
    let refresh = select(vec![Refresh::Together, Refresh::Staggered]);
    let layers = prop::option::of((phases(), 0_u32..3, 0_u32..3));
    (phases(), layers, refresh).prop_map(|(base, layers, refresh)| {
        let range = |(phases, one, other): (Phases, u32, u32)| LayerRange {
            first: one.min(other),
            last: one.max(other),
            phases,
        };
        // Layers inherit what no word of theirs denies: stages where they have none, a phase that is dense.
        let staged = |attention: &Attention| attention.pruned().map(|pruning| !pruning.stages.is_empty());
        let sayable = |of_layers: &Phases| {
            let bare = [&of_layers.prefill, &of_layers.decode].map(staged).contains(&Some(false));
            base.prefill == base.decode && !(bare && staged(&base.prefill) == Some(true))
        };
        let overrides: Vec<LayerRange> =
            layers.filter(|(of_layers, ..)| sayable(of_layers)).map(range).into_iter().collect();
        Pipeline::from_checked("Sample".into(), "".into(), refresh, base, overrides.into())
    })
}

/// Valid descriptions that score and rank as the authors' code does, at positions that it has.
pub fn published_prunings() -> impl Strategy<Value = LayerPruning> {
    let last_chunk = select(vec![1_u32, 2, 4]);
    let ratios = prop::collection::vec(select(vec![2_u32, 3, 4]), 2);
    let query_blocks = select(vec![[8_u32, 8, 8], [16, 16, 8], [16, 8, 4], [4, 4, 4]]);
    let strides = select(vec![[1_u32, 1, 1], [4, 2, 1], [2, 4, 4]]);
    let refresh = select(vec![[1_u32, 1, 1], [4, 2, 1], [8, 4, 2], [6, 6, 3]]);
    let budgets = (1_u32..6, 2_u32..8, 2_u32..8);
    let ends = (0_u32..5, 0_u32..10);
    let shape = (0_usize..=3, last_chunk, ratios, query_blocks, strides, refresh);
    (shape, budgets, ends, published_ropes()).prop_map(|(shape, budgets, ends, rope)| {
        let (count, last_chunk, ratios, query_blocks, strides, refresh) = shape;
        let (keep_last, keep_second, keep_third) = budgets;
        let (sinks, beyond) = ends;
        let chunks = [last_chunk * ratios[0] * ratios[1], last_chunk * ratios[0], last_chunk];
        let chunks = &chunks[3 - count..];
        let stages: Vec<Stage> = (0..count)
            .map(|stage| Stage {
                keep: (stage > 0).then(|| [0, keep_second, keep_third][stage] * chunks[stage - 1]),
                chunk: chunks[stage],
                query_block: query_blocks[3 - count..][stage],
                query_stride: strides[stage],
                refresh: refresh[stage],
                scoring: Scoring::default(),
                rope: None,
            })
            .collect();
        let scan = if count == 0 { ScanRope::None } else { rope.scan };
        LayerPruning {
            sink: sinks * last_chunk,
            window: (2 * chunks.first().copied().unwrap_or(1) - 1).max(1) + beyond,
            query_block: query_blocks[2],
            keep: if count == 0 { 0 } else { keep_last * last_chunk },
            ranking: Ranking::All,
            rope: Rope { scan, ..rope },
            stages: stages.into(),
        }
    })
}

/// The positions that golden files have.
fn published_ropes() -> impl Strategy<Value = Rope> {
    let mut ropes = vec![Rope { scan: ScanRope::None, attend: AttendRope::None }];
    for scan in [ScanRope::Relative, ScanRope::ChunkIndexed, ScanRope::Infllm, ScanRope::None] {
        ropes.extend([AttendRope::Streaming, AttendRope::Infllm].map(|attend| Rope { scan, attend }));
    }
    select(ropes)
}

/// Random problems over [`prunings`], up to `keys` keys and 40 queries, of models that were trained on more positions
/// or on less.
pub fn samples(keys: usize) -> impl Strategy<Value = Sample> {
    let trained = select(vec![TRAINED, 40, 96, 150]);
    (prunings(), shapes(keys), trained)
        .prop_map(|(pruning, shape, trained)| Sample { trained, ..Sample::new(pruning, shape) })
}

/// Random problems over [`published_prunings`].
pub fn published_samples(keys: usize) -> impl Strategy<Value = Sample> {
    (published_prunings(), shapes(keys)).prop_map(|(pruning, shape)| Sample::new(pruning, shape))
}

/// Shapes of up to `keys` keys and 40 queries.
pub fn shapes(keys: usize) -> impl Strategy<Value = Shape> {
    let heads = select(vec![(1_usize, 1_usize), (1, 3), (2, 2), (3, 1)]);
    (heads, 1..=keys, 1_usize..=40, any::<u64>()).prop_map(|((kv_heads, group), keys, queries, seed)| {
        let queries = queries.min(keys);
        Shape { kv_heads, group, first_position: keys - queries, queries, seed }
    })
}
