//! What is drawn: descriptions in every word, shapes, lengths around every edge, and data that is hard to round or to
//! compare.

use std::borrow::Cow;
use std::collections::BTreeSet;

use half::bf16;
use ihip_dsl::emit::{Activation, Buffer, Extent, Instructions, Program};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{AttendRope, Geometry, KvType, LayerPruning, Pipeline, Plan, Refresh, ScanRope};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use ihip_tests::support::sample::{Random, prunings};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::families::{Data, HEAD_DIMS, Layer, every_head, every_layer, layer};

/// Rows of the largest call.
const ROWS: usize = 48;
/// Largest `Tmax`.
const TOKENS: usize = 400;

/// Query heads and key-value heads: every ratio of models in use.
pub(super) const HEADS: [(u32, u32); 5] = [(2, 2), (3, 1), (4, 1), (8, 1), (6, 2)];
/// Elements of a head, in turns: large ones take the emulator longer, and come up less often.
const HEAD_DIM_TURNS: [u32; 8] = [32, 64, 96, 128, 32, 256, 64, 96];

/// A layer that was drawn.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    pub(super) layer: Layer,
    pub(super) activation: Activation,
    /// Whether all numbers are small and whole, or halves of such, and every angle a quarter turn: then nothing is
    /// rounded.
    pub(super) exact: bool,
    /// Whether the layer's kernels attend to every key, which is what its pruning then describes.
    pub(super) dense: bool,
    /// Which texts run. Where they are not the portable ones, only those that the portable program does not have count.
    pub(super) instructions: Instructions,
}

/// The same layers every time, `count` of them: shapes and types take turns, descriptions are drawn.
pub(super) fn layers(count: usize, exact: bool) -> Vec<Drawn> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    // Where something is rounded, the chosen layers are of every type that is left out.
    let types = if exact { KvType::ALL.as_slice() } else { &KvType::ALL[..3] };
    let mut draw = |number: usize| {
        let pruning: LayerPruning = prunings().new_tree(&mut runner).expect("nothing is rejected").current();
        let (query_heads, kv_heads) = HEADS[number % HEADS.len()];
        let head_dim = HEAD_DIM_TURNS[number % HEAD_DIM_TURNS.len()];
        let turn = if exact { number + number / HEADS.len() } else { number };
        let kv_type = types[turn % types.len()];
        let layer = Layer {
            heads: (query_heads, kv_heads, head_dim),
            kv_type,
            page: [16, 4, 8][number / 2 % 3],
            trained: [8192, 96, 40, 300][number % 4],
            pruning,
        };
        let activation = if number / 3 % 3 == 2 { Activation::Bf16 } else { Activation::F32 };
        Drawn { layer, activation, exact, dense: false, instructions: Instructions::Portable }
    };
    (0..count).map(&mut draw).collect()
}

/// A dense layer of every type and head.
pub(super) fn dense(exact: bool) -> Vec<Drawn> {
    let every = KvType::ALL.into_iter().flat_map(|kv_type| HEAD_DIMS.map(|head_dim| (kv_type, head_dim)));
    let draw = |(number, (kv_type, head_dim)): (usize, (KvType, u32))| {
        let (query_heads, kv_heads) = HEADS[number % HEADS.len()];
        let all = (0, TOKENS as u32 + 1);
        let modes = (ScanRope::None, AttendRope::None);
        let layer = layer((query_heads, kv_heads, head_dim), kv_type, 16, all, &[], 0, modes);
        let activation = if number % 2 == 1 { Activation::Bf16 } else { Activation::F32 };
        Drawn { layer, activation, exact, dense: true, instructions: Instructions::Portable }
    };
    every.enumerate().map(draw).collect()
}

/// Layers that were chosen so that every kernel is among theirs, for every type that it takes.
pub(super) fn chosen() -> Vec<Drawn> {
    every_layer().into_iter().map(|layer| as_chosen(layer, Activation::F32)).collect()
}

/// Layers of every type and head, which take turns with the type of activations.
pub(super) fn of_every_head() -> Vec<Drawn> {
    let activations = [Activation::F32, Activation::Bf16].into_iter().cycle();
    every_head().into_iter().zip(activations).map(|(layer, activation)| as_chosen(layer, activation)).collect()
}

fn as_chosen(layer: Layer, activation: Activation) -> Drawn {
    Drawn { layer, activation, exact: false, dense: false, instructions: Instructions::Portable }
}

/// Those of `layers` that have texts for the host's instructions alone, with these.
pub(super) fn beyond_portable(layers: &[Drawn]) -> Vec<Drawn> {
    let instructions = host().instructions();
    if instructions == Instructions::Portable {
        return Vec::new();
    }
    let layers = layers.iter().map(|layer| Drawn { instructions, ..layer.clone() });
    layers.filter(|layer| layer.program().kernels().iter().any(|kernel| layer.counts(&kernel.name))).collect()
}

impl Drawn {
    pub(super) fn geometry(&self) -> Geometry {
        let geometry = self.layer.geometry();
        if self.exact { Geometry { query_scale: 0.25, ..geometry } } else { geometry }
    }

    pub(super) fn frequencies(&self) -> Vec<f64> {
        if !self.exact {
            return self.layer.frequencies();
        }
        // What is rotated before it is cached is rotated by kernels that know no table.
        let quarters = |pair: u32| if self.layer.pruning.rope.rotated_cache() { 0 } else { pair % 4 };
        (0..self.layer.heads.2 / 2).map(|pair| f64::from(quarters(pair)) * std::f64::consts::FRAC_PI_2).collect()
    }

    fn program(&self) -> Program {
        let plan = if self.dense {
            Plan::dense(self.geometry(), self.frequencies(), 1)
        } else {
            let phases = self.layer.pruning.clone().into();
            let none = Cow::Borrowed([].as_slice());
            let pipeline = Pipeline::from_checked("Families".into(), "".into(), Refresh::Together, phases, none);
            Plan::new(&pipeline, self.geometry(), self.frequencies(), 1).expect("one layer")
        };
        let program = Program::with(&plan, self.activation, self.instructions, Tunings::default());
        program.expect("a usual head")
    }

    /// Whether a kernel of that name is what the layer is drawn for.
    pub(super) fn counts(&self, kernel: &str) -> bool {
        self.instructions == Instructions::Portable || kernel.ends_with("_sm_90a")
    }

    pub(super) fn attention(&self) -> Attention {
        self.attention_for(TOKENS)
    }

    /// With room for that many tokens.
    pub(super) fn attention_for(&self, tokens: usize) -> Attention {
        let program = self.program();
        let extent = Extent { rows: ROWS, tokens };
        let pages = tokens.div_ceil(self.layer.page as usize);
        let mut attention = Attention::running(host(), program, extent, pages);
        if self.exact {
            self.write_quarters(&mut attention);
        }
        attention
    }

    /// Puts cosines and sines of quarter turns in place that are exactly 0 where they should be.
    fn write_quarters(&self, attention: &mut Attention) {
        let half = self.layer.heads.2 as usize / 2;
        let positions = attention.read(Buffer::RopeTable).len() / (half * 8);
        let rotated = self.layer.pruning.rope.rotated_cache();
        let angle = |position: usize, pair: usize| {
            let quarters = if rotated { 0 } else { position * (pair % 4) % 4 };
            [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]][quarters]
        };
        let angles = (0..positions).flat_map(|position| (0..half).flat_map(move |pair| angle(position, pair)));
        attention.write_f32(Buffer::RopeTable, &angles.collect::<Vec<f32>>());
    }
}

/// What is asked of a layer.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Position of the first query.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Keys that the grid is laid out for beyond those that there are.
    pub(super) spare: usize,
    /// Stages that decoding steps start from, in turn.
    pub(super) restarts: Vec<Option<usize>>,
    pub(super) kind: Kind,
    pub(super) seed: u64,
}

/// Values that queries and keys have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Noise,
    /// Few small whole numbers: scores are equal all over.
    Ties,
    /// Every key is the same.
    Alike,
    /// A key that a query asks for beside one that is louder and is not what it asks for.
    Needle,
    /// Logits of thousands.
    Huge,
    /// Some elements of keys are −∞.
    Infinite,
    /// Some elements of keys are NaN.
    NotANumber,
}

impl Kind {
    pub(super) const ALL: [Self; 7] =
        [Self::Noise, Self::Ties, Self::Alike, Self::Needle, Self::Huge, Self::Infinite, Self::NotANumber];
}

/// Positions and lengths at which something changes in `pruning`, by name.
fn edges(pruning: &LayerPruning) -> Vec<(&'static str, usize)> {
    let (sink, window) = (pruning.sink as usize, pruning.window as usize);
    let mut edges = vec![("nothing", 0), ("sinks", sink), ("window", window), ("sinks and window", sink + window)];
    for stage in &*pruning.stages {
        let (chunk, far) = (stage.chunk as usize, sink + window);
        // Where the first chunk is seen, where as many are as are kept, and query blocks end.
        edges.extend([("chunk", chunk), ("first chunk", far + chunk), ("query block", stage.query_block as usize)]);
        edges.push(("what is kept", far + pruning.keep as usize));
        edges.extend(stage.keep.map(|keep| ("what enters a stage", far + keep as usize)));
    }
    edges
}

/// The numbers beside edges and on them, less than `most`.
fn beside_edges(pruning: &LayerPruning, most: usize) -> Vec<usize> {
    let edges = edges(pruning).into_iter();
    let mut edges: Vec<usize> = edges.flat_map(|(_, edge)| [edge.saturating_sub(1), edge, edge + 1]).collect();
    edges.retain(|&edge| edge < most);
    edges.sort_unstable();
    edges.dedup();
    edges
}

/// Every situation that some call must be in, as [`Asked::situations`] names them.
pub(super) fn situations() -> BTreeSet<String> {
    let edges = ["sinks", "window", "sinks and window", "chunk", "first chunk", "query block", "what is kept"];
    let edges = edges.into_iter().chain(["what enters a stage"]);
    let edges = edges.flat_map(|edge| ["one less than ", "", "one more than "].map(|beside| format!("{beside}{edge}")));
    let before = edges.chain(["nothing", "one more than nothing"].map(str::to_owned));
    let mut situations: BTreeSet<String> = before.map(|edge| format!("before the call: {edge}")).collect();
    let rows = ["one less than query block", "query block", "one more than query block", "one more than nothing"];
    situations.extend(rows.map(|edge| format!("rows: {edge}")));
    situations.extend(Kind::ALL.map(|kind| format!("values: {kind:?}")));
    situations.extend((0..3).map(|stage| format!("a step renews from stage {stage}")));
    let others =
        ["a step renews nothing", "a ragged query block", "fewer keys than are kept", "a grid with room to spare"];
    situations.extend(others.map(str::to_owned));
    situations
}

/// Calls of a layer: at every edge as often as anywhere else.
pub(super) fn asked(drawn: &Drawn) -> impl Strategy<Value = Asked> + use<> {
    let pruning = &drawn.layer.pruning;
    let stages = pruning.stages.len();
    let most = TOKENS - ROWS - 8;
    let first = prop_oneof![prop::sample::select(beside_edges(pruning, most)), 0..most];
    let rows = beside_edges(pruning, ROWS + 1).into_iter().filter(|&rows| rows > 0).collect::<Vec<usize>>();
    // Rows of whole query blocks, so that no average is over thirds.
    let rows = if drawn.exact {
        prop::sample::select(vec![16, 32, 48]).boxed()
    } else {
        prop_oneof![prop::sample::select(rows), 1..=ROWS].boxed()
    };
    let restart = prop_oneof![3 => (0..stages.max(1)).prop_map(Some), 1 => Just(None)];
    let kinds = if drawn.exact { vec![Kind::Ties] } else { Kind::ALL.to_vec() };
    let kind = prop::sample::select(kinds);
    let restarts = prop::collection::vec(restart, 2);
    (first, rows, 0..8_usize, restarts, kind, any::<u64>()).prop_map(
        move |(first, rows, spare, restarts, kind, seed)| {
            // The first step has nothing to go on with.
            let mut restarts: Vec<Option<usize>> = std::iter::once(Some(0)).chain(restarts).collect();
            if stages == 0 {
                restarts.fill(None);
            }
            Asked { first, rows, spare, restarts, kind, seed }
        },
    )
}

impl Asked {
    /// What is particular about the call, in words.
    pub(super) fn situations(&self, drawn: &Drawn) -> Vec<String> {
        let pruning = &drawn.layer.pruning;
        let mut situations = vec![format!("values: {:?}", self.kind)];
        for (name, edge) in edges(pruning) {
            for (what, number) in [("before the call", self.first), ("rows", self.rows)] {
                let beside =
                    [(edge.checked_sub(1), "one less than "), (Some(edge), ""), (Some(edge + 1), "one more than ")];
                let beside = beside.into_iter().filter(|(beside, _)| *beside == Some(number));
                situations.extend(beside.map(|(_, beside)| format!("{what}: {beside}{name}")));
            }
        }
        let restarts = self.restarts.iter().filter(|_| !pruning.stages.is_empty());
        situations.extend(restarts.map(|restart| match restart {
            Some(stage) => format!("a step renews from stage {stage}"),
            None => "a step renews nothing".to_owned(),
        }));
        let query_blocks = pruning.stages.iter().map(|stage| stage.query_block as usize);
        let far = (self.first + self.rows).saturating_sub((pruning.sink + pruning.window) as usize);
        let others = [
            (query_blocks.into_iter().any(|rows| !self.rows.is_multiple_of(rows)), "a ragged query block"),
            (!pruning.stages.is_empty() && far < pruning.keep as usize, "fewer keys than are kept"),
            (self.spare > 0, "a grid with room to spare"),
        ];
        situations.extend(others.into_iter().filter(|(is_so, _)| *is_so).map(|(_, name)| name.to_owned()));
        situations
    }

    /// Queries, keys and values of `rows` rows from `first` on.
    pub(super) fn data(&self, drawn: &Drawn, rows: usize) -> Data {
        let layer = &drawn.layer;
        let (query, key, head_dim) = (layer.query_row(), layer.key_row(), layer.heads.2 as usize);
        let tokens = self.first + rows;
        let mut random = Random(self.seed);
        let mut draw = |count: usize| -> Vec<f32> { random.floats(count) };
        let (mut queries, mut keys, mut values) = (draw(rows * query), draw(tokens * key), draw(tokens * key));
        match self.kind {
            Kind::Noise => {}
            Kind::Ties => {
                for x in queries.iter_mut().chain(&mut keys).chain(&mut values) {
                    *x = x.round().clamp(-2.0, 2.0);
                }
                // A head that asks for nothing weighs all keys alike.
                queries.chunks_mut(head_dim).step_by(3).for_each(|head| head.fill(0.0));
            }
            Kind::Alike => {
                let (first, others) = keys.split_at_mut(key);
                others.chunks_mut(key).for_each(|token| token.copy_from_slice(first));
            }
            Kind::Needle => {
                let asked: Vec<f32> = queries[..head_dim].to_vec();
                let at = (random.next() % tokens as u64) as usize;
                for (element, asked) in asked.iter().enumerate() {
                    keys[at * key + element] = 4.0 * asked;
                    if at + 1 < tokens {
                        let aside = if element % 2 == 0 { 8.0 } else { -8.0 };
                        keys[(at + 1) * key + element] = aside * asked;
                    }
                }
            }
            Kind::Huge => queries.iter_mut().chain(&mut keys).for_each(|x| *x *= 64.0),
            Kind::Infinite | Kind::NotANumber => {
                let wild = if self.kind == Kind::Infinite { f32::NEG_INFINITY } else { f32::NAN };
                for _ in 0..1 + tokens / 32 {
                    let at = (random.next() % keys.len() as u64) as usize;
                    keys[at] = wild;
                }
            }
        }
        if let Some(most) = layer.kv_type.most().filter(|_| drawn.exact) {
            // Every scale is 1: each group has the largest whole number, or its opposite.
            let size = layer.kv_type.group(head_dim).expect("the type has scales");
            for group in keys.chunks_mut(size).chain(values.chunks_mut(size)) {
                let sign = if random.next().is_multiple_of(2) { 1 } else { -1 };
                group[(random.next() % size as u64) as usize] = (sign * most) as f32;
            }
        }
        // As an activation has them and, but for scales, as the cache does: both hold them as they are.
        for x in queries.iter_mut().chain(&mut keys).chain(&mut values) {
            *x = bf16::from_f32(*x).to_f32();
        }
        if layer.kv_type.most().is_none() {
            let heads = [&mut queries, &mut keys, &mut values].into_iter().flat_map(|x| x.chunks_mut(head_dim));
            heads.for_each(|row| layer.kv_type.round(row));
        }
        Data { first: self.first, rows, queries, keys, values }
    }
}
