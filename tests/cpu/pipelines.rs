//! Requests over sampled pipelines, layer by layer: a prompt in ragged chunks, then decoding steps that renew masks and
//! reuse them, phases and layers that differ, masks renewed together or staggered.

use std::sync::Arc;

use ihip_dsl::reference::{self, BlockList, Decode, Problem};
use ihip_dsl::{Attention, Geometry, KvType, Pipeline, Plan, Pruning, Renewal};
use ihip_model::presets::Paper3k;
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::{CpuDevice, CpuTensor};
use ihip_runtime::session::Phase;
use ihip_runtime::{Session, Step};
use ihip_tests::support::agreement::near_tie;
use ihip_tests::support::sample::{HEAD_DIM, Random, pipelines};
use ihip_tests::support::tolerance;
use proptest::prelude::*;

const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DECODED: usize = 9;

/// Queries, keys and values of one layer, for every token.
struct Layer {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    decode: Decode,
    /// Whether rounding may have decided what its lists are from here on.
    close: bool,
}

impl Layer {
    fn new(tokens: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut floats = |heads: usize| random.floats(tokens * heads * HEAD_DIM);
        let [queries, keys, values] = [HEADS, KV_HEADS, KV_HEADS].map(&mut floats);
        Self { queries, keys, values, decode: Decode::new(), close: false }
    }

    fn qkv(&self, step: &Step) -> CpuTensor {
        let row =
            |values: &[f32], heads: usize, row: usize| values[row * heads * HEAD_DIM..][..heads * HEAD_DIM].to_vec();
        let rows = step.start..step.start + step.rows;
        let values = rows.flat_map(|at| {
            [row(&self.queries, HEADS, at), row(&self.keys, KV_HEADS, at), row(&self.values, KV_HEADS, at)].concat()
        });
        CpuTensor::new((HEADS + 2 * KV_HEADS) * HEAD_DIM, values.collect())
    }

    /// What the reference makes of a step: lists and outputs. `renewal` is what the session renews.
    fn expected(
        &mut self,
        attention: &Attention,
        plan: &Plan,
        step: &Step,
        renewal: Renewal,
    ) -> (Vec<BlockList>, Vec<f32>) {
        // Dense attention reads nothing of a description.
        let unread = Paper3k::pipeline().base().prefill.pruned().expect("it prunes");
        let width = HEADS * HEAD_DIM;
        let geometry = plan.geometry();
        let problem = Problem {
            pruning: attention.pruned().unwrap_or(unread),
            query_heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            kv_type: KvType::F32,
            query_scale: geometry.query_scale,
            frequencies: plan.frequencies(),
            queries: &self.queries[step.start * width..(step.start + step.rows) * width],
            keys: &self.keys[..(step.start + step.rows) * KV_HEADS * HEAD_DIM],
            values: &self.values[..(step.start + step.rows) * KV_HEADS * HEAD_DIM],
            first_position: step.start,
            t_max: step.t_max,
            trained: geometry.trained as usize,
        };
        match (attention, &step.phase) {
            (Attention::Dense, _) => (Vec::new(), reference::dense(&problem)),
            (Attention::Pruned(pruning), Phase::Prefill) => {
                let outcome = reference::prefill(&problem);
                // Every call starts anew.
                self.close = near_tie(&pruning.stages, &outcome.stages);
                (outcome.lists, outcome.out)
            }
            (Attention::Pruned(pruning), Phase::Decode { .. }) => {
                let decoded = self.decode.renew(&problem, renewal);
                let close = near_tie(&pruning.stages, &decoded.stages);
                self.close = close || (self.close && renewal.restart != Some(0));
                (decoded.lists, decoded.out)
            }
        }
    }
}

fn plan(pipeline: &Pipeline, trained: u32) -> Arc<Plan> {
    let geometry = Geometry {
        query_heads: HEADS as u32,
        kv_heads: KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        kv_type: KvType::F32,
        page: 16,
        query_scale: 1.0 / (HEAD_DIM as f32).sqrt(),
        trained,
    };
    let frequencies = (0..HEAD_DIM / 2).map(|pair| 10_000_f64.powf(-2.0 * pair as f64 / HEAD_DIM as f64)).collect();
    Arc::new(Plan::new(pipeline, geometry, frequencies, LAYERS as u32).expect("three layers"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_request_is_the_references(
        pipeline in pipelines(),
        prompt in 30_usize..220,
        chunk in prop::sample::select(vec![64_usize, 128]),
        trained in prop::sample::select(vec![8192_u32, 40, 150]),
        seed in any::<u64>(),
    ) {
        let plan = plan(&pipeline, trained);
        let tokens = prompt + DECODED;
        let mut layers: Vec<Layer> = (0..LAYERS as u64).map(|at| Layer::new(tokens, seed.wrapping_add(at))).collect();
        let mut device = CpuDevice::new(2).expect("two threads");
        let mut cache = device.cache(&plan, tokens).expect("memory for a small problem");
        device.record_masks(&mut cache, true);
        let mut session = Session::new(Arc::clone(&plan));
        let mut steps = session.prefill_steps(prompt, chunk).expect("a valid chunk").into_iter();
        while session.length() < tokens {
            let step = steps.next().unwrap_or_else(|| session.decode_step());
            session.advance(&step);
            device.begin(&mut cache, &step, &vec![0; step.rows]).expect("room for the step");
            for (at, layer) in layers.iter_mut().enumerate() {
                let phases = pipeline.layer(at as u32);
                let (attention, renewal) = match &step.phase {
                    Phase::Prefill => (&phases.prefill, Renewal::default()),
                    Phase::Decode { renewals } => (&phases.decode, renewals[at]),
                };
                let mut out = device.tensor(step.rows, HEADS * HEAD_DIM).expect("memory for a small problem");
                device.attention(&mut cache, at, &layer.qkv(&step), &mut out).expect("the CPU does not fail");
                let lists = device.block_lists(&cache, at).expect("the CPU does not fail").unwrap_or_default();
                let counted = lists.counts.iter().enumerate();
                let counted: Vec<_> =
                    counted.map(|(row, &count)| &lists.blocks[row * lists.width..][..count as usize]).collect();

                let (expected, expected_out) = layer.expected(attention, &plan, &step, renewal);
                let expected: Vec<Vec<i32>> = expected
                    .iter()
                    .map(|list| list.blocks[..list.count].iter().map(|&block| block as i32).collect())
                    .collect();
                if counted != expected {
                    prop_assert!(layer.close, "layer {at} at {}: {counted:?}, not {expected:?}", step.start);
                    continue;
                }
                let got = device.read(&out, step.rows).expect("the CPU does not fail");
                for (index, (got, expected)) in got.iter().zip(&expected_out).enumerate() {
                    prop_assert!(
                        (got - expected).abs() <= tolerance::SUM,
                        "output {index} of layer {at} at {} is {got}, not {expected}", step.start
                    );
                }
            }
        }
    }
}
