//! Every word of the language on a device: sampled pipelines, two of them as the layers of one, against the reference.

use std::ops::Range;
use std::sync::Arc;

use ihip_dsl::emit::{Activation, Extent, Program};
use ihip_dsl::reference::{self, BlockList, Problem};
use ihip_dsl::{Attention, Geometry, KvType, LayerPruning, LayerRange, Phases, Pipeline, Plan, Refresh};
use ihip_runtime::device::Device;
use ihip_runtime::session::SEGMENT;
use ihip_runtime::{Session, Step};
use ihip_tests::support::agreement::near_tie;
use ihip_tests::support::sample::prunings;
use ihip_tests::support::tolerance::SUM;
use proptest::prelude::Strategy;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Check, check, noise};

/// Pipelines of two layers.
const PIPELINES: usize = 16;
/// Tokens read in steps of [`CHUNK`]: whole query blocks of every sampled pipeline.
const PROMPT: usize = 208;
const CHUNK: usize = 64;
/// Tokens in all: decoding steps enough for every pattern of renewals to be run, recorded and replayed.
const TOKENS: usize = PROMPT + 26;

/// Two layers and what they compute.
struct Pair {
    /// Each while the prompt is read and while tokens are generated.
    layers: [[LayerPruning; 2]; 2],
    geometry: Geometry,
    /// `[tokens, query_heads + 2 · kv_heads, head_dim]` of each layer.
    qkv: [Vec<f32>; 2],
}

/// What one layer computes.
#[derive(Debug, PartialEq)]
struct Computed {
    /// The block lists of every step, those of a query block's rankings one after the other.
    lists: Vec<Vec<i32>>,
    /// `[tokens, query_heads · head_dim]`.
    out: Vec<f32>,
}

/// The same `count` pairs every time, in shapes that take turns.
fn pairs(count: usize) -> Vec<Pair> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut draw = || prunings().new_tree(&mut runner).expect("nothing is rejected").current();
    let heads = [(4, 2, 32), (3, 1, 64), (2, 2, 32), (8, 1, 32)];
    let pair = |number: usize| {
        let (first, other) = (draw(), draw());
        // The phases of a layer differ where they cache keys alike.
        let alike = first.rope.rotated_cache() == other.rope.rotated_cache();
        let decode = if alike { first.clone() } else { other.clone() };
        let layers = [[first.clone(), first], [other, decode]];
        let (query_heads, kv_heads, head_dim) = heads[number % heads.len()];
        // What is rotated before it is cached is rounded to the cache's type, after which lists may differ.
        let exact = layers.iter().flatten().any(|layer| layer.rope.rotated_cache());
        let geometry = Geometry {
            query_heads,
            kv_heads,
            head_dim,
            kv_type: if exact { KvType::F32 } else { KvType::ALL[number % KvType::ALL.len()] },
            page: [16, 4][number / 2 % 2],
            query_scale: (head_dim as f32).sqrt().recip(),
            trained: [8192, 40, 96, 150][number / 4 % 4],
        };
        let row = ((query_heads + 2 * kv_heads) * head_dim) as usize;
        let qkv = [0, 1].map(|layer| noise((2 * number + layer) as u64, TOKENS * row));
        Pair { layers, geometry, qkv }
    };
    (0..count).map(pair).collect()
}

impl Pair {
    fn plan(&self) -> Arc<Plan> {
        let [first, second] = self.layers.clone().map(|layer| {
            let [prefill, decode] = layer.map(Attention::Pruned);
            Phases { prefill, decode }
        });
        let overrides = vec![LayerRange { first: 1, last: 1, phases: second }];
        let pipeline = Pipeline::from_checked("Words".into(), "".into(), Refresh::Together, first, overrides.into());
        Arc::new(Plan::new(&pipeline, self.geometry, self.frequencies(), 2).expect("two layers"))
    }

    fn frequencies(&self) -> Vec<f64> {
        let head_dim = f64::from(self.geometry.head_dim);
        (0..self.geometry.head_dim / 2).map(|pair| 10_000_f64.powf(-2.0 * f64::from(pair) / head_dim)).collect()
    }

    /// Queries, keys or values of a layer: the heads `heads` of each of its rows.
    fn column(&self, layer: usize, heads: Range<u32>) -> Vec<f32> {
        let Geometry { query_heads, kv_heads, head_dim, .. } = self.geometry;
        let row = ((query_heads + 2 * kv_heads) * head_dim) as usize;
        let heads = (heads.start * head_dim) as usize..(heads.end * head_dim) as usize;
        self.qkv[layer].chunks(row).flat_map(|row| row[heads.clone()].to_vec()).collect()
    }

    /// What the reference says of a layer; `None` where rounding may have decided otherwise.
    fn expected(&self, layer: usize) -> Option<Computed> {
        let Geometry { query_heads, kv_heads, head_dim, kv_type, query_scale, trained, .. } = self.geometry;
        let queries = self.column(layer, 0..query_heads);
        let keys = self.column(layer, query_heads..query_heads + kv_heads);
        let values = self.column(layer, query_heads + kv_heads..query_heads + 2 * kv_heads);
        let ([prefill, decode], frequencies) = (&self.layers[layer], self.frequencies());
        let width = (query_heads * head_dim) as usize;
        let problem = |pruning, first: usize, last: usize| Problem {
            pruning,
            query_heads: query_heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
            kv_type,
            query_scale,
            frequencies: &frequencies,
            queries: &queries[first * width..last * width],
            keys: &keys,
            values: &values,
            first_position: first,
            t_max: SEGMENT,
            trained: trained as usize,
        };
        let counted = |list: &BlockList| list.blocks[..list.count].iter().map(|&block| block as i32).collect();
        let whole = reference::prefill(&problem(prefill, 0, PROMPT));
        let mut close = near_tie(&prefill.stages, &whole.stages);
        let mut expected = Computed { lists: whole.lists.iter().map(counted).collect(), out: whole.out };
        let mut decoding = reference::Decode::new();
        for position in PROMPT..TOKENS {
            let step = decoding.step(&problem(decode, position, position + 1));
            close |= near_tie(&decode.stages, &step.stages);
            expected.lists.extend(step.lists.iter().map(counted));
            expected.out.extend(step.out);
        }
        (!close).then_some(expected)
    }

    /// What a device computes of both layers, with or without recording what decoding runs.
    fn run<D: Device>(&self, device: &mut D, recorded: bool) -> [Computed; 2] {
        let Geometry { query_heads, kv_heads, head_dim, .. } = self.geometry;
        let [row, width] = [query_heads + 2 * kv_heads, query_heads].map(|heads| (heads * head_dim) as usize);
        let plan = self.plan();
        let mut cache = device.cache(&plan, TOKENS).expect("a small cache");
        device.record_masks(&mut cache, true);
        let tables = [0, 1].map(|layer| device.matrix(TOKENS, row, self.qkv[layer].clone()).expect("a small matrix"));
        // Where keys are rotated before they are cached, so are queries, in place.
        let mut inputs = [row; 2].map(|columns| device.tensor(CHUNK, columns).expect("a small tensor"));
        let mut outputs = [width; 2].map(|columns| device.tensor(CHUNK, columns).expect("a small tensor"));
        let mut computed = [0, 1].map(|_| Computed { lists: Vec::new(), out: Vec::new() });
        let mut session = Session::new(plan);
        let mut steps = session.prefill_steps(PROMPT, CHUNK).expect("whole query blocks").into_iter();
        while session.length() < TOKENS {
            let step: Step = steps.next().unwrap_or_else(|| session.decode_step());
            let ids: Vec<u32> = (step.start as u32..(step.start + step.rows) as u32).collect();
            device.begin(&mut cache, &step, &ids).expect("tokens within the cache");
            let mut operations = |device: &mut D, cache: &mut D::Cache| {
                for layer in 0..2 {
                    device.embed(&tables[layer], step.rows, &mut inputs[layer])?;
                    device.attention(cache, layer, &inputs[layer], &mut outputs[layer])?;
                }
                Ok(())
            };
            if recorded { device.replay(&mut cache, &step, &mut operations) } else { operations(device, &mut cache) }
                .expect("two layers of attention");
            for layer in 0..2 {
                computed[layer].out.extend(device.read(&outputs[layer], step.rows).expect("an output"));
                let lists = device.block_lists(&cache, layer).expect("lists").expect("lists are kept");
                let rows = lists.counts.iter().enumerate();
                let counted = |(row, &count)| lists.blocks[row * lists.width..][..count as usize].to_vec();
                computed[layer].lists.extend(rows.map(counted));
            }
            session.advance(&step);
        }
        computed
    }
}

struct Words;

impl Check for Words {
    fn on<D: Device>(&self, device: &mut D, _: f64) {
        let mut compared = 0;
        for (number, pair) in pairs(PIPELINES).iter().enumerate() {
            let computed = pair.run(device, false);
            for (layer, computed) in computed.iter().enumerate() {
                let Some(expected) = pair.expected(layer) else { continue };
                let what = format!("pipeline {number}, layer {layer}: {:?}", pair.layers[layer]);
                assert_eq!(computed.lists.len(), expected.lists.len(), "{what}");
                for (list, (found, expected)) in computed.lists.iter().zip(&expected.lists).enumerate() {
                    assert_eq!(found, expected, "list {list} of {what}");
                }
                let off = computed.out.iter().zip(&expected.out).map(|(found, expected)| (found - expected).abs());
                let off = off.fold(0.0, f32::max);
                assert!(off < SUM && computed.out.len() == expected.out.len(), "outputs differ by {off}: {what}");
                compared += 1;
            }
            let again = pair.run(device, true);
            assert!(again == computed, "recorded steps compute something else than those that are run: {number}");
        }
        assert!(compared > PIPELINES, "rounding may decide in all but {compared} of {} layers", 2 * PIPELINES);
    }
}

#[test]
fn pipelines_of_every_word_compute_what_the_reference_says_run_or_recorded() {
    check(&Words);
}

#[test]
fn every_launch_of_a_pipeline_is_of_a_kernel_that_is_emitted() {
    for pair in pairs(200) {
        let plan = pair.plan();
        let program = Program::new(&plan, Activation::F32).expect("heads of 32 or 64 elements");
        let names: Vec<_> = program.kernels().into_iter().map(|kernel| kernel.name).collect();
        let extent = Extent { tokens: SEGMENT, rows: CHUNK };
        for layer in 0..2 {
            let stages = pair.layers[layer][1].stages.len();
            let mut launches = program.prefill(layer, extent, CHUNK, SEGMENT);
            launches.extend(
                (0..stages).map(Some).chain([None]).flat_map(|from| program.decode(layer, extent, from.into())),
            );
            let missing = launches.iter().find(|launch| !names.contains(&launch.kernel));
            assert!(missing.is_none(), "{missing:?} of {:?}", pair.layers[layer]);
        }
    }
}

/// Runs of a pipeline that must not differ in a bit.
const RUNS: usize = 20;

struct Repeats;

impl Check for Repeats {
    fn on<D: Device>(&self, device: &mut D, _: f64) {
        for (number, pair) in pairs(3).iter().enumerate() {
            let bits = |computed: [Computed; 2]| {
                computed.map(|layer| (layer.lists, layer.out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()))
            };
            let first = bits(pair.run(device, false));
            for run in 1..RUNS {
                assert!(bits(pair.run(device, run % 2 == 1)) == first, "run {run} of pipeline {number} differs");
            }
        }
    }
}

#[test]
fn twenty_runs_give_the_same_bits_run_or_recorded() {
    check(&Repeats);
}
