//! What each primitive does on all lanes, against what a GPU did: `fixtures/primitives.txt` is its dump, an H200's.
//!
//! Data is whole numbers, so that nothing depends on how a device rounds. The dump is made again by
//! `IHIP_TEST_DEVICE=cuda cargo test -p ihip-tests --test root -- --nocapture every_primitive`, which prints it.

use std::fmt::Write as _;

use super::{Given, Trial, prelude};

const DUMP: &str = include_str!("../fixtures/primitives.txt");

/// Threads of every kernel: two warps, so that a warp's primitive that reaches into the other is seen.
const THREADS: usize = 64;

/// A primitive and how it is used: `out` has `words` words for every thread `t`, `in` is what [`input`] says.
struct Use {
    primitive: &'static str,
    words: usize,
    body: &'static str,
}

const fn used(primitive: &'static str, words: usize, body: &'static str) -> Use {
    Use { primitive, words, body }
}

const USES: [Use; 25] = [
    used("KERNEL", 3, "out[3 * t] = threadIdx.x; out[3 * t + 1] = blockDim.x; out[3 * t + 2] = gridDim.x;"),
    used(
        "SHARED",
        2,
        "
    SHARED(unsigned short, small, 65);
    SHARED(unsigned, wide, 64);
    small[t] = 3 * t;
    wide[t] = 5 * t;
    sync_block();
    out[2 * t] = small[63 - t];
    out[2 * t + 1] = wide[t ^ 33] + sizeof(small);",
    ),
    used(
        "SHARED_DYNAMIC",
        2,
        "
    SHARED_DYNAMIC(unsigned, words);
    SHARED_DYNAMIC(unsigned char, bytes);
    words[t] = 0x01020304u * (t + 1);
    sync_block();
    out[2 * t] = words[63 - t];
    out[2 * t + 1] = bytes[4 * t + 1];",
    ),
    used("float_bits", 1, "out[t] = float_bits(static_cast<float>(t - 32));"),
    used("bits_float", 1, "out[t] = static_cast<int>(bits_float(0x3f800000u + (t << 20)));"),
    used(
        "to_float",
        2,
        "
    out[2 * t] = float_bits(to_float(bf16{static_cast<unsigned short>(in[t])}));
    out[2 * t + 1] = float_bits(to_float(f16{static_cast<unsigned short>(in[t])}));",
    ),
    used(
        "from_float",
        2,
        "
    const float value = static_cast<float>(in[t]) - 32768.0f;
    out[2 * t] = from_float<bf16>(value).bits;
    out[2 * t + 1] = from_float<f16>(value).bits;",
    ),
    used(
        "pack",
        2,
        "
    const float low = static_cast<float>(in[t]), high = static_cast<float>(-in[63 - t]);
    out[2 * t] = pack<bf16>(low, high);
    out[2 * t + 1] = pack<f16>(low, high);",
    ),
    used(
        "multiply_add",
        2,
        "
    const unsigned a = pack<bf16>(in[t] % 17 - 8, in[t] % 13 - 6), b = pack<bf16>(in[t] % 11 - 5, in[t] % 7 - 3);
    out[2 * t] = multiply_add(a, b, pack<bf16>(t - 32, in[63 - t] % 64));
    // The smallest number below the normal ones, made a normal one.
    out[2 * t + 1] = multiply_add(0x80010000u + (t + 1), 0x7b807b80u, 0x80008000u);",
    ),
    used("exp2_fast", 1, "out[t] = float_bits(exp2_fast(static_cast<float>(5 * t - 160)));"),
    used("rsqrt_fast", 1, "out[t] = float_bits(rsqrt_fast(bits_float((127u + 2 * (t - 32)) << 23)));"),
    used(
        "sync_block",
        1,
        "
    SHARED(unsigned, tile, 64);
    tile[t] = in[t];
    sync_block();
    const unsigned other = tile[(t + 40) % 64];
    sync_block();
    tile[t] = other + 1;
    sync_block();
    out[t] = tile[(t + 40) % 64];",
    ),
    used(
        "sync_warp",
        1,
        "
    SHARED(unsigned, tile, 64);
    tile[t] = in[t];
    sync_warp();
    out[t] = tile[t ^ 21];",
    ),
    used(
        "shuffle_xor",
        2,
        "
    out[2 * t] = shuffle_xor(static_cast<unsigned>(in[t]), 5);
    out[2 * t + 1] = static_cast<unsigned>(shuffle_xor(static_cast<double>(in[t]), 16));",
    ),
    used(
        "shuffle",
        2,
        "
    out[2 * t] = shuffle(static_cast<unsigned>(in[t]), 7 * t % 32);
    out[2 * t + 1] = static_cast<unsigned>(shuffle(static_cast<float>(in[t]), t + 35));",
    ),
    used("ballot", 1, "out[t] = ballot(in[t] % 3 == 0);"),
    used(
        "atomic_add",
        2,
        "
    SHARED(unsigned, counters, 2);
    if (t < 2) counters[t] = t;
    sync_block();
    atomic_add(&counters[t % 2], in[t]);
    // One lane at a time: what each got is the same in every order.
    unsigned before = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (t == lane) before = atomic_add(&out[128 - 64], t + 1);
        sync_warp();
    }
    sync_block();
    out[t] = t < 32 ? before : counters[t % 2];",
    ),
    used(
        "atomic_max",
        2,
        "
    SHARED(unsigned, most, 2);
    if (t < 2) most[t] = 40000 * t;
    sync_block();
    atomic_max(&most[t % 2], in[t]);
    atomic_max(&out[64], in[t] << 16);
    sync_block();
    out[t] = most[t % 2];",
    ),
    used(
        "fence_device",
        1,
        "
    out[t] = 2 * t;
    fence_device();
    sync_block();
    const unsigned other = out[63 - t];
    sync_block();
    out[t] = other;",
    ),
    used(
        "copy_async_16",
        4,
        "
    SHARED(int, tile, 256);
    copy_async_16(&tile[4 * (t ^ 17)], in + 4 * t, t % 5 != 3);
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
    for (int i = 0; i < 4; ++i) out[4 * t + i] = tile[4 * t + i];",
    ),
    used(
        "copy_async_commit",
        4,
        "
    SHARED(int, tile, 256);
    for (int i = 0; i < 2; ++i) {
        if (t / 32 == i) copy_async_16(&tile[4 * t], in + 4 * (63 - t), true);
        copy_async_commit();
    }
    copy_async_wait<0>();
    sync_block();
    for (int i = 0; i < 4; ++i) out[4 * t + i] = tile[4 * t + i];",
    ),
    used(
        "copy_async_wait",
        4,
        "
    SHARED(int, tile, 512);
    for (int group = 0; group < 2; ++group) {
        copy_async_16(&tile[256 * group + 4 * t], in + 4 * (t ^ group), true);
        copy_async_commit();
    }
    copy_async_wait<1>();
    for (int i = 0; i < 4; ++i) out[4 * t + i] = tile[4 * t + i];
    copy_async_wait<0>();
    for (int i = 0; i < 4; ++i) out[4 * t + i] += tile[256 + 4 * t + i];",
    ),
    used(
        "load_matrix_x4",
        4,
        "
    SHARED(unsigned short, tile, 512);
    for (int at = t; at < 512; at += 64) tile[at] = at;
    sync_block();
    unsigned r[4];
    load_matrix_x4(r, &tile[8 * (t ^ 3)]);
    for (int i = 0; i < 4; ++i) out[4 * t + i] = r[i];",
    ),
    used(
        "load_matrix_x4_transposed",
        4,
        "
    SHARED(unsigned short, tile, 512);
    for (int at = t; at < 512; at += 64) tile[at] = at;
    sync_block();
    unsigned r[4];
    load_matrix_x4_transposed(r, &tile[8 * (t ^ 3)]);
    for (int i = 0; i < 4; ++i) out[4 * t + i] = r[i];",
    ),
    used(
        "mma_16x8x16",
        8,
        "
    unsigned a[4], b[2], c[4], e[2];
    for (int i = 0; i < 4; ++i) a[i] = pack<bf16>((in[t] + i) % 17 - 8, (in[t] + 3 * i) % 13 - 6);
    for (int i = 0; i < 2; ++i) b[i] = pack<bf16>((in[t] + 5 * i) % 11 - 5, (in[t] + 7 * i) % 7 - 3);
    for (int i = 0; i < 4; ++i) c[i] = pack<f16>((in[t] + i) % 17 - 8, (in[t] + 3 * i) % 13 - 6);
    for (int i = 0; i < 2; ++i) e[i] = pack<f16>((in[t] + 5 * i) % 11 - 5, (in[t] + 7 * i) % 7 - 3);
    float d[4] = {1.0f, 2.0f, 3.0f, 4.0f}, f[4] = {-1.0f, 0.0f, 1.0f, 2.0f};
    mma_16x8x16<bf16>(d, a, b);
    mma_16x8x16<f16>(f, c, e);
    for (int i = 0; i < 4; ++i) out[8 * t + i] = static_cast<int>(d[i]);
    for (int i = 0; i < 4; ++i) out[8 * t + 4 + i] = static_cast<int>(f[i]);",
    ),
];

/// 256 numbers below 2¹⁶ without an order, all different.
fn input() -> Vec<i32> {
    (0..256).map(|at| (at * 40_503 + 1234) % 65_521).collect()
}

/// What the primitive leaves, a line a thread.
fn dump(used: &Use) -> String {
    let name = format!("dump_{}", used.primitive);
    let body = format!(
        "KERNEL({THREADS}) {name}(const int* in, unsigned* out) {{\n    const int t = threadIdx.x;\n    {}\n}}\n",
        used.body.trim_start()
    );
    let trial = Trial { threads: THREADS as u32, shared_bytes: 256, ..Trial::warp(&name, &body) };
    // Zeros rather than room: two of the kernels count in it.
    let out = Given::values(&vec![0_u32; THREADS * used.words]);
    let words = trial.results(&[Given::values(&input()), out]).of::<u32>(1);
    let mut text = format!("{}\n", used.primitive);
    for words in words.chunks(used.words) {
        let words: Vec<String> = words.iter().map(|word| format!("{word:x}")).collect();
        writeln!(text, "  {}", words.join(" ")).expect("a String takes everything");
    }
    text
}

#[test]
#[expect(clippy::print_stdout, reason = "this is how the dump is made")]
fn every_primitive_does_on_all_lanes_what_a_gpu_did() {
    let names: Vec<&str> = USES.iter().map(|used| used.primitive).collect();
    assert_eq!(names, prelude::primitives());
    let dumps: String = USES.iter().map(dump).collect();
    println!("{dumps}");
    for (line, (here, gpu)) in dumps.lines().zip(DUMP.lines()).enumerate() {
        assert_eq!(here, gpu, "line {} of the dump", line + 1);
    }
    assert_eq!(dumps.lines().count(), DUMP.lines().count());
}
