//! What a result must not depend on: how many rows a call has, where prefill chunks end, how many threads there are.

use std::sync::Arc;

use ihip_dsl::reference::Problem;
use ihip_dsl::{KvType, LayerPruning, Plan, parse_str};
use ihip_runtime::Session;
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::{CpuDevice, CpuTensor};
use ihip_tests::support::golden::Answer;
use ihip_tests::support::layer::{self, Layer};
use ihip_tests::support::sample::Random;
use proptest::prelude::*;

pub(super) const TOKENS: usize = 1300;
pub(super) const HEADS: usize = 9;
pub(super) const KV_HEADS: usize = 3;
pub(super) const HEAD_DIM: usize = 64;

/// Small enough for [`TOKENS`] to be pruned in every stage, with query blocks that shrink.
pub(super) const PIPELINES: &str = "
    pub Relative {
        sink 32; window 128;
        stage { chunk 64, query_stride 4, refresh 8 }
        stage { keep 512, chunk 16, query_stride 2, refresh 4 }
        stage { keep 256, chunk 8, query_stride 1, refresh 2 }
        attend { keep 128 }
        rope { scan relative, attend streaming }
    }
    pub Shrinking {
        sink 32; window 128;
        stage { chunk 64, query_block 64, query_stride 4, refresh 8 }
        stage { keep 512, chunk 8, query_block 32, query_stride 1, refresh 4 }
        attend { keep 128 }
        rope { scan chunk_indexed, attend infllm }
    }
    pub Summarised {
        sink 32; window 128; ranking kv_group;
        stage { chunk 48, representative min_max, refresh 8 }
        stage { keep 480, chunk 16, representative mean, scores soft, rope chunk_indexed, refresh 4 }
        stage { keep 256, chunk 8, representative exact, query_reduction mean, refresh 2 }
        attend { keep 128 }
        rope { scan relative, attend streaming }
    }
    pub Together {
        sink 32; window 128; ranking each;
        stage { chunk 64, probe first, chunk_score last, descent kv_group, query_stride 4, refresh 8 }
        stage { keep 512, chunk 16, descent kv_group, scores soft, query_reduction mean, rope dynamic_extend, refresh 4 }
        stage { keep 256, chunk 8, representative min_max, rope chunk_indexed, refresh 2 }
        attend { keep 128 }
        rope { scan relative, attend dynamic_extend }
    }
";

/// Numbers that a test is free to choose, in one place.
pub(super) struct Tensors {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    frequencies: Vec<f64>,
}

impl Tensors {
    pub(super) fn new() -> Self {
        let mut random = Random(1);
        Self {
            queries: random.floats(TOKENS * HEADS * HEAD_DIM),
            keys: random.floats(TOKENS * KV_HEADS * HEAD_DIM),
            values: random.floats(TOKENS * KV_HEADS * HEAD_DIM),
            frequencies: (0..HEAD_DIM / 2).map(|pair| 1e5_f64.powf(-2.0 * pair as f64 / HEAD_DIM as f64)).collect(),
        }
    }

    pub(super) fn problem<'a>(
        &'a self,
        pruning: &'a LayerPruning,
        first: usize,
        rows: usize,
        t_max: usize,
    ) -> Problem<'a> {
        let width = HEADS * HEAD_DIM;
        Problem {
            pruning,
            query_heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            kv_type: KvType::F32,
            query_scale: 0.125,
            frequencies: &self.frequencies,
            queries: &self.queries[first * width..(first + rows) * width],
            keys: &self.keys,
            values: &self.values,
            first_position: first,
            t_max,
            trained: 600,
        }
    }

    /// One layer, which prunes or, where it is `dense`, does not.
    pub(super) fn plan(&self, pruning: &LayerPruning, dense: bool) -> Arc<Plan> {
        let whole = self.problem(pruning, 0, TOKENS, TOKENS);
        match dense {
            true => Plan::dense(layer::geometry(&whole), self.frequencies.clone(), 1).into(),
            false => layer::plan(&whole),
        }
    }

    /// Prefills `prompt` tokens in chunks of `chunk`, then decodes the rest; `dense` prunes nothing.
    fn run(&self, pruning: &LayerPruning, dense: bool, prompt: usize, chunk: usize, threads: usize) -> Answer {
        let plan = self.plan(pruning, dense);
        self.run_in(&mut Layer::new(&plan, TOKENS, threads), pruning, plan, prompt, chunk)
    }

    /// The same in a layer.
    pub(super) fn run_in(
        &self,
        layer: &mut Layer,
        pruning: &LayerPruning,
        plan: Arc<Plan>,
        prompt: usize,
        chunk: usize,
    ) -> Answer {
        let mut session = Session::new(plan);
        let mut all = Answer::default();
        let mut steps = session.prefill_steps(prompt, chunk).expect("a valid chunk").into_iter();
        while session.length() < TOKENS {
            let step = steps.next().unwrap_or_else(|| session.decode_step());
            session.advance(&step);
            let answer = layer.call(&self.problem(pruning, step.start, step.rows, step.t_max), step.phase);
            all.lists.extend(answer.lists);
            all.out.extend(answer.out);
        }
        all
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn prefill_chunks_change_nothing() {
    let tensors = Tensors::new();
    for pipeline in parse_str(PIPELINES).expect("valid pipelines") {
        for dense in [false, true] {
            let expected = tensors.run(pipeline.base().prefill.pruned().expect("not dense"), dense, TOKENS, 8192, 2);
            for chunk in [64, 512, 2048] {
                let got = tensors.run(pipeline.base().prefill.pruned().expect("not dense"), dense, TOKENS, chunk, 2);
                assert_eq!(got.lists, expected.lists, "lists of {} in chunks of {chunk}", pipeline.name());
                assert!(bits(&got.out) == bits(&expected.out), "outputs of {} in chunks of {chunk}", pipeline.name());
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let tensors = Tensors::new();
    for pipeline in parse_str(PIPELINES).expect("valid pipelines") {
        for dense in [false, true] {
            let expected =
                tensors.run(pipeline.base().prefill.pruned().expect("not dense"), dense, TOKENS - 20, 512, 1);
            for threads in [2, 3, 5] {
                let got =
                    tensors.run(pipeline.base().prefill.pruned().expect("not dense"), dense, TOKENS - 20, 512, threads);
                assert_eq!(got.lists, expected.lists, "lists of {} on {threads} threads", pipeline.name());
                assert!(bits(&got.out) == bits(&expected.out), "outputs of {} on {threads} threads", pipeline.name());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A row of a linear map, a norm and an activation is the same alone and in company.
    #[test]
    fn rows_do_not_know_each_other(
        rows in 1_usize..=300,
        part in (0.0f64..1.0, 0.0f64..1.0),
        inputs in prop::sample::select(vec![1_usize, 7, 64, 576]),
        outputs in prop::sample::select(vec![2_usize, 30, 32, 100, 334]),
        seed in any::<u64>(),
    ) {
        let start = (part.0 * rows as f64) as usize;
        let end = start + 1 + (part.1 * (rows - start - 1) as f64) as usize;
        let mut random = Random(seed);
        let x = CpuTensor::new(inputs, random.floats(rows * inputs));
        let mut device = CpuDevice::new(2).expect("two threads");
        let weight = device.matrix(outputs, inputs, random.floats(outputs * inputs)).expect("memory");
        let norm = device.vector(random.floats(inputs)).expect("memory");

        let mut some = device.tensor(end - start, outputs).expect("memory");
        let mut all = device.tensor(rows, outputs).expect("memory");
        device.linear(&x, start..end, &weight, &mut some).expect("the CPU does not fail");
        device.linear(&x, 0..rows, &weight, &mut all).expect("the CPU does not fail");
        let got = device.read(&some, end - start).expect("the CPU does not fail");
        let all_values = device.read(&all, rows).expect("the CPU does not fail");
        prop_assert_eq!(bits(&got), bits(&all_values[start * outputs..end * outputs]));

        let x_values = device.read(&x, rows).expect("the CPU does not fail");
        let x_some = CpuTensor::new(inputs, x_values[start * inputs..end * inputs].to_vec());
        device.linear_add(&x_some, end - start, &weight, &mut some).expect("the CPU does not fail");
        device.linear_add(&x, rows, &weight, &mut all).expect("the CPU does not fail");
        let got = device.read(&some, end - start).expect("the CPU does not fail");
        let all_values = device.read(&all, rows).expect("the CPU does not fail");
        prop_assert_eq!(bits(&got), bits(&all_values[start * outputs..end * outputs]));

        let mut some = device.tensor(end - start, inputs).expect("memory");
        let mut all = device.tensor(rows, inputs).expect("memory");
        device.rms_norm(&x_some, end - start, &norm, 1e-5, &mut some).expect("the CPU does not fail");
        device.rms_norm(&x, rows, &norm, 1e-5, &mut all).expect("the CPU does not fail");
        let got = device.read(&some, end - start).expect("the CPU does not fail");
        let all_values = device.read(&all, rows).expect("the CPU does not fail");
        prop_assert_eq!(bits(&got), bits(&all_values[start * inputs..end * inputs]));
    }
}
