//! Shuffles, ballots, barriers, atomics, shared memory, built-in variables.

use ihip_tests::support::emulator::{Argument, Emulator, Memory, Order};

use super::{Given, Trial};

const ORDERS: [Order; 4] = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)];

#[test]
fn every_thread_knows_its_place() {
    let body = r"
KERNEL(64) place(unsigned* out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] = threadIdx.x | blockIdx.x << 8 | blockIdx.y << 16 | blockIdx.z << 24;
}";
    let grid = [3, 2, 4];
    let mut seen = Vec::new();
    for blocks in ORDERS {
        let emulator = Emulator { blocks, ..Emulator::default() };
        let trial = Trial { emulator, threads: 64, grid, ..Trial::warp("place", body) };
        seen.push(trial.results(&[Given::room::<u32>(64 * 24)]).of::<u32>(0));
    }
    let expected: Vec<u32> = (0..24 * 64)
        .map(|at| {
            let (block, thread) = (at / 64, at % 64);
            thread | (block % 3) << 8 | (block / 3 % 2) << 16 | (block / 6) << 24
        })
        .collect();
    assert!(seen.iter().all(|out| *out == expected));
}

#[test]
fn shuffles_and_ballots_reach_all_lanes() {
    let body = r"
KERNEL(96) lanes(unsigned* exchanged, float* from, double* wide, unsigned* voted) {
    const int t = threadIdx.x;
    for (int mask = 1; mask < 32; mask++) {
        exchanged[mask * 96 + t] = shuffle_xor(static_cast<unsigned>(t * t + mask), mask);
        from[mask * 96 + t] = shuffle(0.5f * t, (t * 7 + mask) % 32);
        wide[mask * 96 + t] = shuffle_xor(t + 1e-12, mask);
        voted[mask * 96 + t] = ballot(t * mask % 3 == 0);
        sync_warp();
    }
}";
    for threads in ORDERS {
        let emulator = Emulator { threads, ..Emulator::default() };
        let trial = Trial { emulator, threads: 96, ..Trial::warp("lanes", body) };
        let room = Given::room::<u32>(32 * 96);
        let results = trial.results(&[room.clone(), room.clone(), Given::room::<f64>(32 * 96), room]);
        let (exchanged, from) = (results.of::<u32>(0), results.of::<f32>(1));
        let (wide, voted) = (results.of::<f64>(2), results.of::<u32>(3));
        for mask in 1..32_usize {
            for thread in 0..96_usize {
                let at = mask * 96 + thread;
                let other = thread ^ mask;
                assert_eq!(exchanged[at] as usize, other * other + mask);
                assert_eq!(wide[at], other as f64 + 1e-12);
                let source = thread / 32 * 32 + (thread * 7 + mask) % 32;
                assert_eq!(from[at], 0.5 * source as f32);
                let bits = (0..32).filter(|lane| (thread / 32 * 32 + lane) * mask % 3 == 0).map(|lane| 1_u32 << lane);
                assert_eq!(voted[at], bits.sum::<u32>());
            }
        }
    }
}

#[test]
fn a_barrier_orders_shared_memory() {
    let body = r"
KERNEL(256) reversed(const int* in, int* out) {
    SHARED(int, tile, 256);
    SHARED_DYNAMIC(int, more);
    for (int round = 0; round < 4; round++) {
        tile[threadIdx.x] = in[round * 256 + threadIdx.x];
        sync_block();
        more[threadIdx.x] = tile[255 - threadIdx.x];
        sync_block();
        out[round * 256 + threadIdx.x] = more[threadIdx.x ^ 32] + static_cast<int>(sizeof(tile));
    }
}";
    let values: Vec<i32> = (0..1024).map(|value| value * 3 - 700).collect();
    let expected: Vec<i32> = (0..1024).map(|at| values[at / 256 * 256 + (255 - ((at % 256) ^ 32))] + 1024).collect();
    for threads in ORDERS {
        let emulator = Emulator { threads, ..Emulator::default() };
        let trial = Trial { emulator, threads: 256, shared_bytes: 1024, ..Trial::warp("reversed", body) };
        let results = trial.results(&[Given::values(&values), Given::room::<i32>(1024)]);
        assert_eq!(results.of::<i32>(1), expected);
    }
}

#[test]
fn atomics_count_over_all_blocks() {
    let body = r"
KERNEL(64) counted(unsigned* counters, unsigned* tickets) {
    const unsigned ticket = atomic_add(&counters[0], 1);
    tickets[ticket] = 1;
    atomic_max(&counters[1], (blockIdx.x * 64 + threadIdx.x) * 2654435761u);
    fence_device();
    if (atomic_max(&counters[2], 0) != 5) atomic_add(&counters[3], 2);
}";
    for workers in [1, 3] {
        let emulator = Emulator { workers, ..Emulator::random(workers as u64) };
        let trial = Trial { emulator, threads: 64, grid: [50, 1, 1], ..Trial::warp("counted", body) };
        let results = trial.results(&[Given::values(&[0_u32, 9, 5, 0]), Given::room::<u32>(50 * 64)]);
        let largest = (0..3200_u32).map(|thread| thread.wrapping_mul(2_654_435_761)).max();
        assert_eq!(results.of::<u32>(0), [3200, largest.unwrap(), 5, 0]);
        assert_eq!(results.of::<u32>(1), [1; 3200]);
    }
}

#[test]
fn arguments_arrive_as_they_were_given() {
    let body = r"
KERNEL(32) given(const float* in, int i, float f, unsigned* out) {
    if (threadIdx.x == 0) {
        out[0] = float_bits(in[1]);
        out[1] = i;
        out[2] = float_bits(f);
        out[3] = float_bits(bits_float(0x12345678u));
    }
}";
    let given = [Given::values(&[1.0_f32, -2.5]), Given::I32(-3), Given::F32(0.1), Given::room::<u32>(4)];
    let expected = [(-2.5_f32).to_bits(), (-3_i32).cast_unsigned(), 0.1_f32.to_bits(), 0x1234_5678];
    assert_eq!(Trial::warp("given", body).results(&given).of::<u32>(1), expected);
}

#[test]
fn unsigned_arguments_and_offsets_reach_the_kernel() {
    let body =
        "KERNEL(32) offset(const int* in, unsigned u, unsigned* out) { out[threadIdx.x] = in[threadIdx.x] + u; }";
    let (input, out) = (Memory::of("in", &[5_i32; 40]), Memory::new("out", 40 * 4));
    let arguments = [Argument::Buffer(&input, 32), Argument::U32(u32::MAX), Argument::Buffer(&out, 32)];
    Trial::warp("offset", body).emulate(&arguments).unwrap();
    assert_eq!(out.read::<u32>(), [[u32::MAX; 8].as_slice(), &[4; 32]].concat());
}
