//! An allocation on a GPU, or of pinned memory, that fails, and requests that are cancelled while pages move.

use std::sync::Arc;

use ihip_dsl::{KvType, Plan, parse_str};
use ihip_model::generate::Extent;
use ihip_model::{Generation, Interrupt, Llama, ModelFile, Sampler};
use ihip_runtime::Error;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::device::{Device, Sampling};
use ihip_runtime::kv::{Budget, Tier};
use ihip_tests::support::failing::{Failing, TIERS};
use ihip_tests::support::gguf::tiny_llama;

use super::device::{Attention, ROW, plan};
use super::noise;

/// Tokens of a prompt: more than a layer's least share of the GPU holds.
const PROMPT: usize = 12_000;
const TOKENS: usize = PROMPT + 40;
/// Driver and graphs may keep so many bytes of the GPU.
const KEPT: u64 = 32 << 20;

/// The least of each layer on the GPU.
const BUDGET: Budget = Budget { gpu: 0, ..Budget::UNLIMITED };

/// A device with that budget.
fn device() -> CudaDevice {
    let mut device = CudaDevice::new(0, Precision::F32).unwrap();
    device.limit_kv(BUDGET, 64);
    device
}

/// Outputs and lists of a request.
type Run = (Vec<f32>, Vec<Vec<i32>>);

fn run(device: &mut CudaDevice, qkv: &[f32]) -> Result<Run, Error> {
    Attention::tried(device, qkv, (PROMPT, 64), true, &mut |_, _, _| Ok(()))
}

#[test]
#[ignore = "needs a GPU"]
fn whichever_allocation_fails_bytes_come_back_and_the_next_request_is_right() {
    let mut device = device();
    let qkv = noise(11, TOKENS * ROW);
    // What kernels and graphs take is taken once.
    let expected = run(&mut device, &qkv).unwrap();
    let counting = Arc::new(Failing::default());
    device.account_to(counting.clone());
    assert!(run(&mut device, &qkv).unwrap() == expected);
    assert_eq!(counting.held(), [0, 0]);
    let allocations = TIERS.map(|tier| counting.asked(tier));
    // Keys and values of two layers lie with the host; on the GPU there are their other parts and much besides.
    assert!(allocations[0] > 20 && allocations[1] == 4, "{allocations:?}");
    let free = device.available_bytes().unwrap().unwrap();
    let [on_gpu, on_host] = allocations;
    // The host's memory as it is asked for where it is needed, and by the thread that prepares it.
    for (tier, allocations, prepares) in
        [(Tier::Gpu, on_gpu, false), (Tier::Host, on_host, false), (Tier::Host, on_host, true)]
    {
        for which in 1..=allocations {
            let failing = Arc::new(Failing::at(tier, which));
            device.account_to(failing.clone());
            if prepares {
                device.prepare(&plan(), TOKENS, 0);
            }
            let error = run(&mut device, &qkv).map(|_| ()).unwrap_err();
            let Error::OutOfMemory { what, device: named, needed, .. } = &error else { panic!("{error}") };
            assert_eq!(named.starts_with("cuda:"), tier == Tier::Gpu, "allocation {which} on the {tier}: {error}");
            assert!(!what.is_empty() && *needed > 0, "{error}");
            assert_eq!(failing.asked(tier), which, "nothing is asked for after what fails");
            assert_eq!(failing.held(), [0, 0], "after allocation {which} on the {tier} failed");

            assert!(run(&mut device, &qkv).unwrap() == expected, "after allocation {which} on the {tier} failed");
            assert_eq!(failing.asked(tier), which + allocations, "a run has so many allocations");
            assert_eq!(failing.held(), [0, 0]);
        }
    }
    let left = device.available_bytes().unwrap().unwrap();
    assert!(left + KEPT >= free, "{free} bytes were free on the GPU, {left} are after {allocations:?} failures");
}

static NEVER: Interrupt = Interrupt::new();

/// The tokens that a request of the model writes, whose weights are loaded first: more than a layer's least share of the GPU.
fn written(device: &mut CudaDevice, file: &ModelFile) -> Result<Vec<u32>, ihip_model::Error> {
    const NEW: usize = 12;
    let pipelines = parse_str(
        "pub Short {
            sink 32; window 128;
            stage { chunk 64, query_stride 4, refresh 8 }
            stage { keep 256, chunk 8, query_stride 1, refresh 2 }
            attend { keep 128 }
            rope { scan relative, attend streaming }
        }",
    );
    let llama = Llama::load(file, device, &NEVER, &mut |_| ())?;
    let config = llama.config();
    let (geometry, layers) = (config.geometry(KvType::F32), config.layers as u32);
    let plan = Arc::new(Plan::new(&pipelines.unwrap()[0], geometry, config.frequencies(), layers).unwrap());
    let prompt: Vec<u32> = (0..2 * PROMPT as u32).map(|token| 4 + token * token % 199).collect();
    let extent = Extent { capacity: prompt.len() + NEW, chunk: 2048 };
    let mut request = Generation::new(&llama, device, &plan, extent, &NEVER)?;
    for step in request.prefill_steps(prompt.len())? {
        request.prefill(step, &prompt)?;
    }
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 0);
    let mut tokens = vec![request.sample(&mut sampler)?];
    while tokens.len() < NEW {
        request.decode(tokens[tokens.len() - 1])?;
        tokens.push(request.sample(&mut sampler)?);
    }
    Ok(tokens)
}

#[test]
#[ignore = "needs a GPU"]
fn whichever_allocation_of_a_model_and_its_request_fails_the_next_one_writes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, tiny_llama().build().bytes).unwrap();
    let file = ModelFile::open(path).unwrap();
    let mut device = CudaDevice::new(0, Precision::F32).unwrap();
    device.limit_kv(BUDGET, 2048);
    // What kernels and products take is taken once.
    let expected = written(&mut device, &file).unwrap();
    let counting = Arc::new(Failing::default());
    device.account_to(counting.clone());
    assert_eq!(written(&mut device, &file).unwrap(), expected);
    assert_eq!(counting.held(), [0, 0]);
    // Weights, activations, and what a cache of four layers has on either side.
    let allocations = TIERS.map(|tier| counting.asked(tier));
    assert!(allocations[0] > 60 && allocations[1] == 8, "{allocations:?}");
    for (tier, allocations) in TIERS.into_iter().zip(allocations) {
        for which in 1..=allocations {
            let failing = Arc::new(Failing::at(tier, which));
            device.account_to(failing.clone());
            let error = written(&mut device, &file).unwrap_err();
            assert!(matches!(&error, ihip_model::Error::Runtime(Error::OutOfMemory { .. })), "{error}");
            assert_eq!(failing.asked(tier), which, "nothing is asked for after what fails");
            assert_eq!(failing.held(), [0, 0], "after allocation {which} on the {tier} failed");
            assert_eq!(written(&mut device, &file).unwrap(), expected, "after allocation {which} on the {tier} failed");
            assert_eq!(failing.held(), [0, 0]);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_is_prepared_is_taken_or_given_back() {
    let mut device = device();
    let qkv = noise(11, TOKENS * ROW);
    let expected = run(&mut device, &qkv).unwrap();
    let counting = Arc::new(Failing::default());
    device.account_to(counting.clone());
    device.prepare(&plan(), TOKENS, 0);
    let cache = device.cache(&plan(), TOKENS).unwrap();
    let took = device.host_allocation(&cache).expect("some of it lies with the host");
    assert!(took.seconds > 0.0 && took.waited > 0.0, "{took:?}");
    drop(cache);
    device.prepare(&plan(), TOKENS, 0);
    assert!(run(&mut device, &qkv).unwrap() == expected, "in memory that was prepared");
    assert_eq!((counting.asked(Tier::Host), counting.held()), (8, [0, 0]), "nothing was asked for twice");

    // A budget of its own, a request of another length, and a host that would be left with too little.
    device.prepare(&plan(), TOKENS, 0);
    device.limit_kv(BUDGET, 64);
    assert_eq!(counting.held(), [0, 0], "a budget gives back what was prepared for another");
    device.prepare(&plan(), 3 * TOKENS, 0);
    assert!(run(&mut device, &qkv).unwrap() == expected, "what was prepared was for another request");
    assert_eq!(counting.held(), [0, 0]);
    let asked = counting.asked(Tier::Host);
    device.prepare(&plan(), TOKENS, u64::MAX);
    assert!(run(&mut device, &qkv).unwrap() == expected, "nothing was prepared");
    assert_eq!(counting.asked(Tier::Host), asked + 4);

    let failing = Arc::new(Failing::at(Tier::Gpu, 1));
    device.account_to(failing.clone());
    device.prepare(&plan(), TOKENS, 0);
    let error = device.cache(&plan(), TOKENS).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert_eq!(failing.held(), [0, 0], "the GPU has no room for the cache");
    device.prepare(&plan(), TOKENS, 0);
    drop(device);
    assert_eq!(failing.held(), [0, 0], "the device is gone");
}

#[test]
#[ignore = "needs a GPU"]
fn a_request_that_is_cancelled_while_pages_move_gives_everything_back() {
    let mut device = device();
    let qkv = noise(11, TOKENS * ROW);
    let expected = run(&mut device, &qkv).unwrap();
    let counting = Arc::new(Failing::default());
    device.account_to(counting.clone());
    let cancelled = || Error::NotInPlan { name: "what was cancelled".to_owned() };
    // Every step of the first ones: some run unrecorded, some are recorded, some replay. And one in the prompt, whose next
    // layer's keys are on their way.
    for recorded in [true, false] {
        for end in [PROMPT - 64].into_iter().chain(PROMPT + 1..=PROMPT + 16) {
            let error = Attention::tried(&mut device, &qkv, (PROMPT, 64), recorded, &mut |_, _, step| {
                if step.start + step.rows < end { Ok(()) } else { Err(cancelled()) }
            });
            assert_eq!(error.map(|_| ()).unwrap_err().to_string(), cancelled().to_string());
            assert_eq!(counting.held(), [0, 0], "cancelled at token {end}, recorded: {recorded}");
        }
    }
    let mut promotions = 0;
    let next = Attention::tried(&mut device, &qkv, (PROMPT, 64), true, &mut |device, cache, step| {
        if step.start + step.rows == PROMPT + 16 {
            promotions = device.traffic(cache)?.promotions;
        }
        Ok(())
    });
    assert!(next.unwrap() == expected, "after requests were cancelled");
    assert!(promotions > 0, "pages moved in the steps that were cancelled");
}
