//! Every kernel family against the reference, on small random problems, where [`host`] says: in the emulator, or on a
//! GPU. Kernels are compiled once for each of a few layers; proptest draws positions, lengths and data.

use std::borrow::Cow;
use std::cell::RefCell;

use ihip_dsl::emit::{Activation, Extent};
use ihip_dsl::reference::Problem;
use ihip_dsl::{
    AttendRope, Geometry, KvType, LayerPruning, Pipeline, Plan, Ranking, Refresh, Rope, ScanRope, Scoring, Stage,
};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use ihip_tests::support::sample::prunings;
use proptest::prelude::Strategy;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

mod append;
mod attend;
mod decode;
mod extended;
mod heads;
mod hopper;
mod methods;
mod paging;
mod quantised;
mod scan;
mod scoring;
mod select;
mod text;
mod tuned;
mod turns;
mod whole;

pub(crate) use heads::{HEAD_DIMS, every_head};
pub(crate) use quantised::quantised_layers;
pub(crate) use scoring::scored_layers;

/// Rows of the largest call.
const ROWS: usize = 160;
/// Largest `Tmax`.
const TOKENS: usize = 640;
/// Layers that are sampled.
const SAMPLED: usize = 8;

/// A layer to test: `(query heads, key-value heads, head dimension)`, element type, page, stages and the rest.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) heads: (u32, u32, u32),
    pub(crate) kv_type: KvType,
    pub(crate) page: u32,
    /// Positions that the model was trained on.
    pub(crate) trained: u32,
    pub(crate) pruning: LayerPruning,
}

pub(crate) fn stage(keep: u32, chunk: u32, query_block: u32, query_stride: u32) -> Stage {
    Stage {
        keep: (keep > 0).then_some(keep),
        chunk,
        query_block,
        query_stride,
        refresh: 1,
        scoring: Scoring::default(),
        rope: None,
    }
}

pub(crate) fn layer(
    heads: (u32, u32, u32),
    kv_type: KvType,
    page: u32,
    (sink, window): (u32, u32),
    stages: &[Stage],
    keep: u32,
    (scan, attend): (ScanRope, AttendRope),
) -> Layer {
    let query_block = stages.last().map_or(32, |stage| stage.query_block);
    let stages = Cow::Owned(stages.to_vec());
    let pruning =
        LayerPruning { sink, window, query_block, stages, keep, ranking: Ranking::All, rope: Rope { scan, attend } };
    Layer { heads, kv_type, page, trained: 8192, pruning }
}

/// Layers that differ in everything that changes a kernel's text.
pub(crate) fn layers() -> Vec<Layer> {
    use {AttendRope as A, KvType as T, ScanRope as S};
    vec![
        layer(
            (4, 2, 32),
            T::F32,
            16,
            (16, 64),
            &[stage(0, 32, 64, 4), stage(128, 16, 64, 2), stage(64, 8, 64, 1)],
            48,
            (S::Relative, A::Streaming),
        ),
        // Query blocks that shrink, chunks that are no powers of two, rows that do not fill a tile, tiny pages.
        layer(
            (9, 3, 64),
            T::Bf16,
            4,
            (12, 50),
            &[stage(0, 24, 48, 4), stage(96, 12, 48, 3), stage(48, 4, 16, 1)],
            32,
            (S::ChunkIndexed, A::Streaming),
        ),
        layer((2, 2, 128), T::F16, 16, (0, 40), &[stage(0, 16, 32, 2)], 48, (S::Infllm, A::Infllm)),
        layer((8, 1, 32), T::F32, 16, (8, 64), &[stage(0, 32, 16, 1), stage(96, 8, 16, 4)], 64, (S::None, A::None)),
        // More rows than shared memory holds at a time, and blocks of one token.
        layer(
            (2, 1, 64),
            T::F32,
            8,
            (4, 33),
            &[stage(0, 16, 128, 1), stage(64, 1, 128, 128)],
            24,
            (S::Relative, A::Infllm),
        ),
        layer((4, 1, 32), T::Bf16, 16, (8, 40), &[stage(0, 8, 8, 8)], 32, (S::None, A::Streaming)),
        // No stages at all: sinks and window.
        layer((6, 2, 64), T::F16, 16, (20, 70), &[], 0, (S::None, A::Streaming)),
    ]
}

/// Layers of every word.
pub(crate) fn all_layers() -> Vec<Layer> {
    layers().into_iter().chain(scoring::scored_layers()).chain(extended::extended_layers()).collect()
}

/// Layers of every word and of every type.
pub(crate) fn every_layer() -> Vec<Layer> {
    all_layers().into_iter().chain(quantised_layers()).collect()
}

/// Sampled descriptions of every word, on geometries that take turns: the same ones every time.
fn sampled_layers() -> Vec<Layer> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let heads = [(4, 2, 32), (3, 1, 64), (2, 2, 32), (8, 1, 32), (6, 2, 128)];
    let layer = |number: usize| Layer {
        heads: heads[number % heads.len()],
        kv_type: KvType::ALL[number % 3],
        page: [16, 4][number % 2],
        trained: [8192, 96, 40, 300][number % 4],
        pruning: prunings().new_tree(&mut runner).expect("nothing is rejected").current(),
    };
    (0..SAMPLED).map(layer).collect()
}

/// Those that attend in every way.
fn attended_layers() -> Vec<Layer> {
    layers().into_iter().chain(extended::extended_layers()).collect()
}

impl Layer {
    pub(crate) fn geometry(&self) -> Geometry {
        let (query_heads, kv_heads, head_dim) = self.heads;
        let query_scale = 1.0 / (head_dim as f32).sqrt();
        let (kv_type, page, trained) = (self.kv_type, self.page, self.trained);
        Geometry { query_heads, kv_heads, head_dim, kv_type, page, query_scale, trained }
    }

    pub(crate) fn frequencies(&self) -> Vec<f64> {
        let head_dim = self.heads.2;
        (0..head_dim / 2).map(|pair| 10_000_f64.powf(-2.0 * f64::from(pair) / f64::from(head_dim))).collect()
    }

    pub(crate) fn plan(&self) -> Plan {
        self.plan_renewed(Refresh::Together)
    }

    /// The same where masks are renewed so.
    fn plan_renewed(&self, refresh: Refresh) -> Plan {
        let name = Cow::Borrowed("Families");
        let pipeline =
            Pipeline::from_checked(name, Cow::Borrowed(""), refresh, self.pruning.clone().into(), Cow::Borrowed(&[]));
        Plan::new(&pipeline, self.geometry(), self.frequencies(), 1).expect("one layer")
    }

    fn attention(&self, plan: &Plan) -> Attention {
        Attention::new(host(), plan, Activation::F32, Extent { rows: ROWS, tokens: TOKENS })
    }

    pub(crate) fn query_row(&self) -> usize {
        (self.heads.0 * self.heads.2) as usize
    }

    pub(crate) fn key_row(&self) -> usize {
        (self.heads.1 * self.heads.2) as usize
    }
}

/// Random inputs of one call: queries at `first..first + rows`, keys and values from 0 on.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Data {
    /// Keys and values are of the cache's type already, so that storing them changes nothing.
    pub(crate) fn new(layer: &Layer, first: usize, rows: usize, seed: u64) -> Self {
        let mut noise = Noise(seed);
        let count = (first + rows) * layer.key_row();
        let queries = (0..rows * layer.query_row()).map(|_| 2.0 * noise.next()).collect();
        let mut keys: Vec<f32> = (0..count).map(|_| 2.0 * noise.next()).collect();
        let mut values: Vec<f32> = (0..count).map(|_| noise.next()).collect();
        let heads = keys.chunks_mut(layer.heads.2 as usize).chain(values.chunks_mut(layer.heads.2 as usize));
        heads.for_each(|row| layer.kv_type.round(row));
        Self { first, rows, queries, keys, values }
    }

    pub(crate) fn problem<'a>(&'a self, layer: &'a Layer, frequencies: &'a [f64], t_max: usize) -> Problem<'a> {
        Problem {
            pruning: &layer.pruning,
            query_heads: layer.heads.0 as usize,
            kv_heads: layer.heads.1 as usize,
            head_dim: layer.heads.2 as usize,
            kv_type: layer.kv_type,
            query_scale: layer.geometry().query_scale,
            frequencies,
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            first_position: self.first,
            t_max,
            trained: layer.geometry().trained as usize,
        }
    }

    /// Caches everything before the call's own rows, and returns these as projections.
    pub(crate) fn cache(&self, layer: &Layer, attention: &mut Attention) -> Vec<f32> {
        let (query, key) = (layer.query_row(), layer.key_row());
        attention.append(0, &self.keys[..self.first * key], &self.values[..self.first * key]);
        let mut qkv = Vec::new();
        for row in 0..self.rows {
            qkv.extend_from_slice(&self.queries[row * query..][..query]);
            qkv.extend_from_slice(&self.keys[(self.first + row) * key..][..key]);
            qkv.extend_from_slice(&self.values[(self.first + row) * key..][..key]);
        }
        qkv
    }
}

/// Uniform in [−1, 1), the same for the same seed (splitmix64).
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

/// Runs `test` on every layer of `layers`, with `cases` draws of `strategy` each, the same ones every time.
fn check<S: Strategy>(
    layers: &[Layer],
    cases: u32,
    strategy: &S,
    test: impl Fn(&Layer, &mut Attention, S::Value) -> Result<(), TestCaseError>,
) {
    check_on(layers, Layer::plan, cases, strategy, test);
}

/// The same with another plan for the layers' geometries.
fn check_on<S: Strategy>(
    layers: &[Layer],
    plan: impl Fn(&Layer) -> Plan,
    cases: u32,
    strategy: &S,
    test: impl Fn(&Layer, &mut Attention, S::Value) -> Result<(), TestCaseError>,
) {
    check_with(layers, |layer| layer.attention(&plan(layer)), cases, strategy, test);
}

/// The same with kernels of the test's choice.
fn check_with<S: Strategy>(
    layers: &[Layer],
    attention: impl Fn(&Layer) -> Attention,
    cases: u32,
    strategy: &S,
    test: impl Fn(&Layer, &mut Attention, S::Value) -> Result<(), TestCaseError>,
) {
    for layer in layers {
        let attention = RefCell::new(attention(layer));
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let result = runner.run(strategy, |drawn| test(layer, &mut attention.borrow_mut(), drawn));
        result.unwrap_or_else(|error| panic!("{layer:?}: {error}"));
    }
}

/// First position, rows, and keys that the grid is laid out for beyond them: `(first, rows, spare)`.
fn call() -> impl Strategy<Value = (usize, usize, usize)> {
    (0..450_usize, 1..=ROWS, 0..30_usize)
}

/// The largest difference of two elements; NaN where one is, infinite where there are not as many.
fn difference(expected: &[f32], got: &[f32]) -> f32 {
    if expected.len() != got.len() {
        return f32::INFINITY;
    }
    let differences = expected.iter().zip(got).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |largest, next| if next.is_nan() || next > largest { next } else { largest })
}
