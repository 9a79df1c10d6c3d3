//! One layer of SmolLM2-135M (9 query heads, 3 key-value heads of 64) on the CPU after 16,384 tokens: a prefill call
//! of eight query blocks, and decoding steps from every restart stage.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ihip_dsl::{Geometry, KvType, Plan, parse_str};
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::{CpuCache, CpuDevice, CpuTensor};
use ihip_runtime::session::Phase;
use ihip_runtime::{Session, Step};

const TOKENS: usize = 16_384;
const ROWS: usize = 512;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;

/// Sizes of the paper's 3K setting (appendix F), and its first layers' with chunk-indexed scan.
const PIPELINES: &str = "
    pub Relative {
        sink 256; window 1024;
        stage { chunk 256, query_stride 4, refresh 16 }
        stage { keep 32768, chunk 32, query_stride 4, refresh 8 }
        stage { keep 8192, chunk 8, query_stride 1, refresh 4 }
        attend { keep 2048 }
        rope { scan relative, attend streaming }
    }
    pub ChunkIndexed {
        sink 256; window 1024;
        stage { chunk 256, query_stride 4, refresh 16 }
        stage { keep 32768, chunk 32, query_stride 4, refresh 8 }
        stage { keep 8192, chunk 8, query_stride 1, refresh 4 }
        attend { keep 4096 }
        rope { scan chunk_indexed, attend streaming }
    }
    pub Sinks { sink 256; window 1024; rope { attend streaming } }
";

fn plans() -> Vec<Arc<Plan>> {
    let geometry = Geometry {
        query_heads: HEADS as u32,
        kv_heads: KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        kv_type: KvType::F32,
        page: 16,
        query_scale: 0.125,
        trained: 8192,
    };
    let frequencies: Vec<f64> = (0..32).map(|pair| 100_000f64.powf(-f64::from(pair) / 32.0)).collect();
    let pipelines = parse_str(PIPELINES).expect("valid pipelines");
    let pruned =
        pipelines.iter().map(|pipeline| Plan::new(pipeline, geometry, frequencies.clone(), 1).expect("one layer"));
    pruned.chain([Plan::dense(geometry, frequencies.clone(), 1)]).map(Arc::new).collect()
}

/// Values in [−1, 1) that repeat themselves nowhere near.
fn tensor(rows: usize) -> CpuTensor {
    let columns = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let mut state = 1u32;
    let values = (0..rows * columns).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    });
    CpuTensor::new(columns, values.collect())
}

fn filled(device: &mut CpuDevice, plan: &Arc<Plan>) -> CpuCache {
    let mut cache = device.cache(plan, TOKENS + ROWS).expect("memory for one layer");
    let step = Step { start: 0, rows: TOKENS, t_max: TOKENS, phase: Phase::Prefill };
    device.begin(&mut cache, &step, &vec![0; TOKENS]).expect("room for the context");
    device.append(&mut cache, 0, &tensor(TOKENS));
    cache
}

fn attention(criterion: &mut Criterion) {
    let mut device = CpuDevice::new(1).expect("one thread");
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(10);
    for plan in plans() {
        let mut cache = filled(&mut device, &plan);
        let qkv = tensor(ROWS);
        let mut out = device.tensor(ROWS, HEADS * HEAD_DIM).expect("memory for one layer");
        let mut session = Session::new(Arc::clone(&plan));
        session.advance(&Step { start: 0, rows: TOKENS, t_max: TOKENS, phase: Phase::Prefill });

        let step = session.prefill_steps(ROWS, ROWS).expect("a valid chunk").remove(0);
        device.begin(&mut cache, &step, &[0; ROWS]).expect("room for the step");
        group.throughput(Throughput::Elements((ROWS / 64) as u64));
        group.bench_function(BenchmarkId::new("prefill", plan.name()), |bencher| {
            bencher.iter(|| device.attention(&mut cache, 0, &qkv, &mut out).expect("the CPU does not fail"));
        });

        group.throughput(Throughput::Elements(1));
        let mut seen = Vec::new();
        for _ in 0..16 {
            let step = session.decode_step();
            device.begin(&mut cache, &step, &[0]).expect("room for the step");
            device.attention(&mut cache, 0, &qkv, &mut out).expect("the CPU does not fail");
            let Phase::Decode { renewals } = &step.phase else { unreachable!("a decoding step") };
            if !seen.contains(renewals) {
                seen.push(renewals.clone());
                let restart = renewals[0].restart.map_or("none".to_owned(), |stage| stage.to_string());
                group.bench_function(BenchmarkId::new(format!("decode from {restart}"), plan.name()), |bencher| {
                    bencher.iter(|| device.attention(&mut cache, 0, &qkv, &mut out).expect("the CPU does not fail"));
                });
            }
            session.advance(&step);
        }
    }
    group.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
