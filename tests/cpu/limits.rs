//! What the CPU device computes at the edges, and what it refuses.

use std::sync::Arc;

use ihip_dsl::reference::Problem;
use ihip_dsl::{AttendRope, LayerPruning, Plan, Ranking, Rope, ScanRope, parse_str};
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::{CpuDevice, CpuTensor};
use ihip_runtime::session::Phase;
use ihip_runtime::{Error, Step};
use ihip_tests::support::layer::{self, Layer};
use ihip_tests::support::sample::{HEAD_DIM, Random, Sample, Shape};

fn sample(pruning: LayerPruning) -> Sample {
    let shape = Shape { kv_heads: 2, group: 2, first_position: 0, queries: 40, seed: 3 };
    Sample::new(pruning, shape)
}

fn streaming(sink: u32, window: u32) -> LayerPruning {
    LayerPruning {
        sink,
        window,
        query_block: 16,
        stages: [].as_slice().into(),
        keep: 0,
        ranking: Ranking::All,
        rope: Rope { scan: ScanRope::None, attend: AttendRope::Streaming },
    }
}

fn plan() -> Arc<Plan> {
    layer::plan(&sample(streaming(4, 8)).problem())
}

#[test]
fn a_row_that_sees_no_key_is_zero() {
    let sample = sample(streaming(0, 0));
    let answer = Layer::new(&layer::plan(&sample.problem()), 40, 1).call(&sample.problem(), Phase::Prefill);
    assert_eq!(answer.out, vec![0.0; 40 * 4 * HEAD_DIM]);
}

#[test]
fn below_the_window_pruned_is_dense() {
    let sample = sample(streaming(4, 40));
    let problem: Problem<'_> = sample.problem();
    let pruned = Layer::new(&layer::plan(&problem), 40, 1).call(&problem, Phase::Prefill);
    let plan = Plan::dense(layer::geometry(&problem), sample.frequencies.clone(), 1);
    let dense = Layer::new(&plan.into(), 40, 1).call(&problem, Phase::Prefill);
    for (pruned, dense) in pruned.out.iter().zip(&dense.out) {
        assert!((pruned - dense).abs() < 1e-5, "{pruned} is not {dense}");
    }
}

#[test]
fn a_cache_that_cannot_fit_is_refused_with_the_numbers() {
    let mut device = CpuDevice::new(1).expect("a thread");
    let Some(free) = device.available_bytes().expect("the CPU does not fail") else {
        // Nothing can be refused where the system does not tell what is free.
        assert!(device.cache(&plan(), 16).is_ok());
        return;
    };
    let Err(error) = device.cache(&plan(), 1 << 36) else { panic!("{free} bytes cannot be enough") };
    assert!(matches!(error, Error::OutOfMemory { needed, available, .. } if needed > available));
    let text = error.to_string();
    assert!(text.contains("the cache of 68719476736 tokens needs "), "{text}");
    assert!(text.contains("but cpu (1 thread) has "), "{text}");
}

#[test]
fn a_cache_takes_what_it_says_and_little_more() {
    let device = CpuDevice::new(1).expect("a thread");
    let plan = plan();
    let grown = device.cache_bytes(&plan, 200_000) - device.cache_bytes(&plan, 100_000);
    // Keys and values of 2 heads, and one row of the rotary table, in f32.
    assert_eq!(grown, 100_000 * (2 * 2 * HEAD_DIM + HEAD_DIM) as u64 * 4);
}

#[test]
fn a_cache_counts_what_stands_for_its_chunks() {
    let device = CpuDevice::new(1).expect("a thread");
    let with = |representatives: [&str; 2]| {
        let [first, second] = representatives;
        let text = format!(
            "pub Summaries {{
                sink 16; window 31;
                stage {{ chunk 16, representative {first} }}
                stage {{ keep 64, chunk 16, representative {second} }}
                attend {{ keep 32 }}
                rope {{ scan none, attend none }}
            }}"
        );
        let pipeline = parse_str(&text).expect("a valid pipeline").remove(0);
        let sample = sample(pipeline.base().decode.pruned().expect("it prunes").clone());
        device.cache_bytes(&layer::plan(&sample.problem()), 16_016)
    };
    // 1,000 chunks in 2 heads, in f32: of bounds two vectors each, and one array for both stages.
    let keys_alone = with(["halving", "exact"]);
    let vectors = (2 * 1_000 * HEAD_DIM * 4) as u64;
    assert_eq!(with(["mean", "exact"]), keys_alone + vectors);
    assert_eq!(with(["min_max", "exact"]), keys_alone + 2 * vectors);
    assert_eq!(with(["min_max", "min_max"]), keys_alone + 2 * vectors);
    assert_eq!(with(["mean", "min_max"]), keys_alone + 3 * vectors);
}

#[test]
fn a_step_beyond_the_reserved_positions_is_refused() {
    let mut device = CpuDevice::new(1).expect("a thread");
    let mut cache = device.cache(&plan(), 10).expect("memory for ten tokens");
    let step = |start, rows| Step { start, rows, t_max: 8192, phase: Phase::Prefill };
    assert!(device.begin(&mut cache, &step(4, 6), &[0; 6]).is_ok());
    let error = device.begin(&mut cache, &step(4, 7), &[0; 7]).expect_err("position 10 is not there");
    assert_eq!(error.to_string(), "the request reserved 10 positions and was asked for position 10");
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let mut device = CpuDevice::new(1).expect("a thread");
    let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
    let table = device.matrix(4, 3, values).expect("memory");
    let mut cache = device.cache(&plan(), 10).expect("memory for ten tokens");
    let mut out = device.tensor(2, 3).expect("memory");
    let step = Step { start: 0, rows: 2, t_max: 8192, phase: Phase::Prefill };
    device.begin(&mut cache, &step, &[3, 1]).expect("room for two tokens");
    device.embed(&table, 2, &mut out).expect("tokens of the table");
    assert_eq!(device.read(&out, 2).expect("the CPU does not fail"), [9.0, 10.0, 11.0, 3.0, 4.0, 5.0]);
    device.begin(&mut cache, &step, &[3, 4]).expect("room for two tokens");
    let error = device.embed(&table, 2, &mut out).expect_err("there are four tokens");
    assert_eq!(error.to_string(), "token 4 is beyond the vocabulary of 4 tokens");
}

#[test]
fn masks_that_are_not_recorded_are_not_there() {
    let mut device = CpuDevice::new(1).expect("a thread");
    let plan = plan();
    let mut cache = device.cache(&plan, 10).expect("memory for ten tokens");
    let step = Step { start: 0, rows: 2, t_max: 8192, phase: Phase::Prefill };
    let qkv = CpuTensor::new(8 * HEAD_DIM, Random(1).floats(2 * 8 * HEAD_DIM));
    let mut out = device.tensor(2, 4 * HEAD_DIM).expect("memory");
    for (record, lists) in [(false, 0), (true, 1), (false, 0)] {
        device.record_masks(&mut cache, record);
        device.begin(&mut cache, &step, &[0, 0]).expect("room for two tokens");
        device.attention(&mut cache, 0, &qkv, &mut out).expect("the CPU does not fail");
        let recorded = device.block_lists(&cache, 0).expect("the CPU does not fail").expect("a pruned layer");
        assert_eq!(recorded.counts.len(), lists);
    }
}

#[test]
fn swiglu_is_gate_times_sigmoid_times_up() {
    let mut device = CpuDevice::new(1).expect("a thread");
    let x = CpuTensor::new(6, vec![0.0, 1.0, -100.0, 5.0, 2.0, 3.0]);
    let mut out = device.tensor(1, 3).expect("memory");
    device.swiglu(&x, 1, &mut out).expect("the CPU does not fail");
    let out = device.read(&out, 1).expect("the CPU does not fail");
    for (got, expected) in out.iter().zip([0.0, 2.0 / (1.0 + (-1.0_f32).exp()), 0.0]) {
        assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
    }
}
