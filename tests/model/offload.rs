//! The model with its keys and values in two tiers writes, bit for bit, what it writes with all of them in one.
//!
//! `IHIP_OFFLOAD_TOKENS` sets how many tokens are written; from 2,000 on every run has to move more than 1,000 pages each
//! way. On a GPU it is always so. `IHIP_OFFLOAD_MINUTES` sets how long requests are served one after the other.

use std::time::{Duration, Instant};

use ihip_dsl::{Pipeline, parse_str};
use ihip_model::presets::Paper3k;
use ihip_model::{Generation, Pruning, Sampler, Special};
use ihip_runtime::Device;
use ihip_runtime::device::Sampling;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::kv::{Budget, Kind, Row, Traffic};
use ihip_tests::support::generation::Loaded;
use ihip_tests::support::model::{book, smollm2};

use super::MODEL;

/// Tokens that are written where nobody asks for more.
const TOKENS: usize = 24;
/// Tokens of the prompt on the CPU.
const PROMPT: usize = 640;
const CHUNK: usize = 64;
/// Bytes of a token in f32: keys and values of 3 heads of 64 in 30 layers.
const TOKEN: u64 = 2 * 30 * 3 * 64 * 4;
/// Pages of keys and of values that a layer cannot do without on the GPU: a step's tokens and two more.
const LEAST: u64 = (CHUNK as u64 / 16 + 2) * 16 * TOKEN;

/// Prunes what is longer than 160 tokens.
const PIPELINE: &str = "
    pub Short {
        sink 32; window 128;
        stage { chunk 64, query_stride 4, refresh 8 }
        stage { keep 256, chunk 8, query_stride 1, refresh 2 }
        attend { keep 128 }
        rope { scan relative, attend streaming }
    }";

fn variable(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not {text:?}")),
        Err(_) => default,
    }
}

/// What a request wrote: tokens, and a digest of the bits of all logits after each.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    tokens: Vec<u32>,
    logits: Vec<u64>,
}

fn digest<D: Device>(generation: &mut Generation<'_, D>) -> u64 {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let last = generation.last_step().rows - 1;
    let mut add = |_, logits: &[f32]| {
        for logit in logits {
            digest = (digest ^ u64::from(logit.to_bits())).wrapping_mul(0x100_0000_01b3);
        }
    };
    generation.logits(last..last + 1, &mut add).expect("the product runs");
    digest
}

/// Spoils a row of a cache.
type Spoil<D> = dyn Fn(&mut D, &mut <D as Device>::Cache);

/// A request that is written.
struct Request<'a, D: Device> {
    pipeline: &'a Pipeline,
    /// Tokens of the prompt, of a step of it, and those that are written.
    prompt: usize,
    chunk: usize,
    count: usize,
    /// Whether decoding steps are recorded and replayed.
    replays: bool,
    /// Spoils a row after the prompt.
    spoil: Option<&'a Spoil<D>>,
}

/// Reads a prompt and writes the most likely tokens with at most `gpu` bytes of keys and values on the GPU.
fn write<D: Device>(model: &mut Loaded<D>, request: &Request<'_, D>, gpu: u64) -> (Written, Traffic) {
    let Request { pipeline, prompt: length, chunk, count, replays, spoil } = *request;
    let text: String = book().chars().take(8 * length).collect();
    let prompt = &smollm2().tokenizer().expect("it has one").encode(&text, Special::Parse).unwrap()[..length];
    model.device_mut().limit_kv(Budget { gpu, ..Budget::UNLIMITED }, chunk);
    let mut request = model.request(Some(pipeline), length + count, chunk);
    request.replay(replays);
    for step in request.prefill_steps(length).expect("a valid chunk") {
        request.prefill(step, prompt).expect("the step runs");
    }
    if let Some(spoil) = spoil {
        let (device, cache) = request.device_and_cache();
        spoil(device, cache);
    }
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 0);
    let mut written = Written { tokens: Vec::new(), logits: Vec::new() };
    for _ in 0..count {
        let token = request.sample(&mut sampler).expect("a token is drawn");
        request.decode(token).expect("the step runs");
        written.tokens.push(token);
        written.logits.push(digest(&mut request));
    }
    let traffic = request.traffic().expect("the device answers");
    drop(request);
    model.device_mut().limit_kv(Budget::UNLIMITED, 8192);
    (written, traffic)
}

/// A key of a sink: every step attends to it.
const SPOILT: Row = Row { layer: 7, kind: Kind::Keys, head: 1, token: 5 };

/// A request of the CPU.
fn on_cpu(pipeline: &Pipeline, count: usize) -> Request<'_, CpuDevice> {
    Request { pipeline, prompt: PROMPT, chunk: CHUNK, count, replays: true, spoil: None }
}

/// That so many misses, promotions and evictions were seen of a request.
fn assert_moved(traffic: &Traffic, least: u64, what: &str) {
    let moved = [traffic.reads().misses, traffic.promotions, traffic.evictions];
    assert!(moved.iter().all(|moved| *moved > least), "{what}: {traffic:?}");
}

#[test]
#[expect(clippy::print_stdout, reason = "what moved is what a long run is for")]
fn offloaded_is_resident_bit_for_bit_and_a_wrong_page_is_found() {
    let count = variable("IHIP_OFFLOAD_TOKENS", TOKENS);
    let pipeline = parse_str(PIPELINE).expect("a valid pipeline").remove(0);
    let mut model = MODEL.lock().unwrap();
    let request = on_cpu(&pipeline, count);
    let (expected, _) = write(&mut model, &request, u64::MAX);
    let half = (PROMPT + count) as u64 * TOKEN / 2;
    for gpu in [2 * half + 32 * TOKEN, half, LEAST] {
        let (written, traffic) = write(&mut model, &request, gpu);
        let what = format!("{gpu} bytes on the GPU");
        println!("{what}, {count} tokens: {traffic:?}");
        assert!(written == expected, "{what} give other tokens or logits");
        if gpu > 2 * half {
            let moved = [traffic.reads().misses, traffic.promotions, traffic.evictions];
            assert_eq!(moved, [0; 3], "all is on the GPU");
        } else {
            assert_moved(&traffic, if count >= 2000 { 1000 } else { count as u64 }, &what);
        }
    }
    let spoil = |_: &mut CpuDevice, cache: &mut <CpuDevice as Device>::Cache| cache.spoil(SPOILT);
    let count = count.min(TOKENS);
    let (spoilt, _) = write(&mut model, &Request { spoil: Some(&spoil), ..on_cpu(&pipeline, count) }, LEAST);
    assert_ne!(spoilt.logits, expected.logits[..count], "a key of a sink was spoilt");
}

/// The length at which it is shown on a GPU: a layer's keys are several times what it has to have there.
const GPU_PROMPT: usize = 20_000;
const GPU_TOKENS: usize = 2000;

#[test]
#[ignore = "needs a GPU"]
#[expect(clippy::print_stdout, reason = "what moved is what it is run for")]
fn offloaded_is_resident_bit_for_bit_on_a_gpu() {
    let pipeline = Paper3k::pipeline();
    let mut model = Loaded::new(smollm2(), CudaDevice::new(0, Precision::F32).expect("a GPU"));
    let request =
        |replays| Request { pipeline, prompt: GPU_PROMPT, chunk: 2048, count: GPU_TOKENS, replays, spoil: None };
    let (expected, traffic) = write(&mut model, &request(true), u64::MAX);
    assert_eq!(traffic, Traffic::default(), "nothing moves where all is on the GPU");
    let (unrecorded, _) = write(&mut model, &request(false), u64::MAX);
    assert!(unrecorded == expected, "recorded steps write something else");
    let half = (GPU_PROMPT + GPU_TOKENS) as u64 * TOKEN / 2;
    for (gpu, replays) in [(half, true), (half, false), (0, true), (0, false)] {
        let (written, traffic) = write(&mut model, &request(replays), gpu);
        let what = format!("{gpu} bytes on the GPU, recorded: {replays}");
        println!("{what}: {traffic:?}");
        assert!(written == expected, "{what}: other tokens or logits");
        assert_moved(&traffic, 1000, &what);
    }
    let spoil = |device: &mut CudaDevice, cache: &mut <CudaDevice as Device>::Cache| {
        device.spoil(cache, SPOILT).expect("it is written");
    };
    let (spoilt, _) = write(&mut model, &Request { spoil: Some(&spoil), count: TOKENS, ..request(true) }, 0);
    assert_ne!(spoilt.logits, expected.logits[..TOKENS], "a key of a sink was spoilt");
}

/// Bytes that the process has in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("it is a number");
    pages * 4096
}

#[test]
#[ignore = "takes minutes: IHIP_OFFLOAD_MINUTES says how many"]
#[expect(clippy::print_stdout, reason = "the figures are what it is run for")]
fn memory_stays_flat_under_load() {
    let minutes = variable("IHIP_OFFLOAD_MINUTES", 15) as u64;
    let pipeline = parse_str(PIPELINE).expect("a valid pipeline").remove(0);
    let mut model = MODEL.lock().unwrap();
    let request = on_cpu(&pipeline, TOKENS);
    let (expected, traffic) = write(&mut model, &request, LEAST);
    // What allocators and threads keep for themselves is there after a few requests.
    (0..5).for_each(|_| drop(write(&mut model, &request, LEAST)));
    let (start, first) = (Instant::now(), resident_bytes());
    let (mut requests, mut least, mut most) = (0, first, first);
    while start.elapsed() < Duration::from_secs(60 * minutes) {
        let (written, moved) = write(&mut model, &request, LEAST);
        assert!(written == expected, "request {requests} wrote something else");
        assert_eq!(moved.promotions.min(1), traffic.promotions.min(1));
        requests += 1;
        let bytes = resident_bytes();
        (least, most) = (least.min(bytes), most.max(bytes));
    }
    println!("{requests} requests in {minutes} minutes: {first} bytes at first, {least} to {most} after");
    assert!(most - least <= first / 100, "{least} to {most} bytes: more than 1 % of {first}");
}
