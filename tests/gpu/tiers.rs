//! A cache of two tiers on a GPU: only a GPU has memory of its own.

use ihip_runtime::device::Device;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::kv::{Budget, Kind, Row, Tier, Traffic};
use ihip_runtime::session::SEGMENT;

use super::device::{Attention, HEAD_DIM, KV_HEADS, ROW};
use super::noise;

const MIB: u64 = 1 << 20;
/// Tokens of a prompt and of a request.
const PROMPT: usize = 40_000;
const TOKENS: usize = PROMPT + 2000;
/// Bytes of keys and values of both layers.
const ALL: u64 = (2 * 2 * KV_HEADS * HEAD_DIM * size_of::<f32>() * TOKENS) as u64;

/// What a request gave, and what its cache did.
struct Run {
    outputs: Vec<f32>,
    lists: Vec<Vec<i32>>,
    traffic: Traffic,
    /// Where the row was that was spoilt.
    spoilt: Option<Tier>,
}

impl Run {
    /// With so many bytes on the GPU. `spoils`: a row that is spoilt in the middle of decoding.
    fn new(qkv: &[f32], gpu: Option<u64>, recorded: bool, spoils: Option<Row>) -> Self {
        Self::reading(qkv, 64, gpu, recorded, spoils)
    }

    /// The same with a prompt that is read in steps of `chunk` tokens.
    fn reading(qkv: &[f32], chunk: usize, gpu: Option<u64>, recorded: bool, spoils: Option<Row>) -> Self {
        let mut device = CudaDevice::new(0, Precision::F32).unwrap();
        if let Some(gpu) = gpu {
            device.limit_kv(Budget { gpu, ..Budget::UNLIMITED }, chunk);
        }
        let (mut traffic, mut spoilt) = (Traffic::default(), None);
        let (outputs, lists) =
            Attention::observed(&mut device, qkv, (PROMPT, chunk), recorded, &mut |device, cache, step| {
                if step.start + step.rows == PROMPT + 1000
                    && let Some(row) = spoils
                {
                    spoilt = Some(device.spoil(cache, row).unwrap());
                }
                if step.start + step.rows == TOKENS {
                    traffic = device.traffic(cache).unwrap();
                }
            });
        Self { outputs, lists, traffic, spoilt }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn pages_that_move_give_the_same_bits_as_a_cache_that_is_on_the_gpu_as_a_whole() {
    let qkv = noise(11, TOKENS * ROW);
    let whole = Run::new(&qkv, None, true, None);
    assert_eq!(whole.traffic, Traffic::default(), "nothing moves where all is on the GPU");
    for (gpu, recorded) in [(ALL / 2, true), (ALL / 2, false), (24 * MIB, true), (0, true), (0, false)] {
        let run = Run::new(&qkv, Some(gpu), recorded, None);
        assert!(run.outputs == whole.outputs, "outputs differ where {gpu} bytes are on the GPU");
        assert!(run.lists == whole.lists, "lists differ where {gpu} bytes are on the GPU");
        let Traffic { attend, promotions, evictions, .. } = run.traffic;
        assert!(attend.misses > 1000 && promotions > 1000 && evictions > 1000, "{:?}", run.traffic);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn steps_of_several_segments_give_the_same_bits_and_move_less() {
    let qkv = noise(11, TOKENS * ROW);
    let whole = Run::new(&qkv, None, true, None);
    let mut moved = Vec::new();
    for chunk in [SEGMENT, 2 * SEGMENT, 4 * SEGMENT] {
        for gpu in [None, Some(24 * MIB)] {
            let run = Run::reading(&qkv, chunk, gpu, true, None);
            assert!(run.outputs == whole.outputs, "outputs differ in steps of {chunk} with {gpu:?} bytes on the GPU");
            assert!(run.lists == whole.lists, "lists differ in steps of {chunk} with {gpu:?} bytes on the GPU");
            moved.extend(gpu.map(|_| run.traffic.streamed_bytes));
        }
    }
    assert!(moved.is_sorted_by(|shorter, longer| shorter > longer), "{moved:?}");
}

#[test]
#[ignore = "needs a GPU"]
fn a_row_that_is_spoilt_in_either_tier_is_found() {
    let qkv = noise(11, TOKENS * ROW);
    let whole = Run::new(&qkv, None, true, None);
    // A sink, and what a step attends to long after it was spoilt: the first of its blocks that the host has by then.
    let listed = whole.lists[whole.lists.len() - 50].iter().map(|first| *first as usize + 3);
    let mut tiers = Vec::new();
    for token in [3].into_iter().chain(listed) {
        for kind in Kind::ALL {
            let run = Run::new(&qkv, Some(0), true, Some(Row { layer: 1, kind, head: 1, token }));
            assert!(run.outputs != whole.outputs, "{kind:?} of token {token} in {:?}", run.spoilt);
            tiers.extend(run.spoilt);
        }
        if tiers.contains(&Tier::Host) {
            break;
        }
    }
    assert!(tiers.contains(&Tier::Gpu) && tiers.contains(&Tier::Host), "{tiers:?}");
}
