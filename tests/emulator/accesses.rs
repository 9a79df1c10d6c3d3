//! Mistakes that a GPU lets pass: every access of these kernels is to memory that is theirs.

use ihip_tests::support::emulator::{Access, Argument, Emulator, Failure, Memory, Order, Place};

use super::Trial;

const ORDERS: [Order; 4] = [Order::Ascending, Order::Descending, Order::Random(1), Order::Random(2)];

fn shared(bytes: usize, offset: isize) -> Place {
    Place { buffer: "a shared array".to_owned(), bytes, offset }
}

#[test]
fn a_read_of_what_nobody_wrote_is_found_byte_by_byte() {
    let body = r"
KERNEL(32) unwritten(const unsigned short* in, unsigned* out) {
    if (threadIdx.x == 0) out[3] = in[0];
    if (threadIdx.x == 7) out[4] = out[3] + in[1];
    if (threadIdx.x == 9) out[5] = *reinterpret_cast<const unsigned*>(in);
}";
    let mut input = Memory::new("in", 4);
    let out = Memory::new("out", 128);
    input.write(0, &[5_u16]);
    let arguments = [Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)];
    let (failure, _, thread, line) = Trial::warp("unwritten", body).failure_at(&arguments);
    let place = Place { buffer: "in".to_owned(), bytes: 4, offset: 2 };
    assert_eq!((failure, thread, line), (Failure::Unwritten { place }, 7, 3));
    // The kernel's own writes of the launch before count.
    assert_eq!(out.read::<u32>()[3], 5);
}

#[test]
fn every_byte_of_a_wide_read_must_have_been_written() {
    let body = r"
KERNEL(32) partly(const float4* in, float4* out) { out[threadIdx.x] = in[threadIdx.x]; }";
    let mut input = Memory::new("in", 512);
    input.write(0, &[1.0_f32; 127]);
    let out = Memory::new("out", 512);
    let trial = Trial::warp("partly", body);
    let (failure, _, thread) = trial.failure(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]);
    assert!(matches!(&failure, Failure::Unwritten { place } if place.buffer == "in"), "{failure}");
    assert_eq!(thread, 31);
    input.write(508, &[1.0_f32]);
    trial.emulate(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]).unwrap();
    assert_eq!(out.read::<f32>(), [1.0; 128]);
}

#[test]
fn shared_memory_is_forgotten_between_blocks() {
    let body = r"
KERNEL(32) leftover(unsigned* out, int from) {
    SHARED(unsigned, tile, 32);
    SHARED_DYNAMIC(unsigned, more);
    if (static_cast<int>(blockIdx.x) < from) {
    } else if (from == 1) {
        out[threadIdx.x] = tile[threadIdx.x];
    } else {
        out[threadIdx.x] = more[threadIdx.x];
    }
    tile[threadIdx.x] = more[threadIdx.x] = 7;
}";
    let out = Memory::new("out", 128);
    let trial = Trial { shared_bytes: 128, grid: [3, 1, 1], ..Trial::warp("leftover", body) };
    trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(3)]).unwrap();
    for from in [1, 2] {
        let (failure, block, thread, line) = trial.failure_at(&[Argument::Buffer(&out, 0), Argument::I32(from)]);
        let unwritten = Failure::Unwritten { place: shared(128, 0) };
        let expected = (unwritten, [from as u32, 0, 0], 0, 4 + 2 * from as u32);
        assert_eq!((failure, block, thread, line), expected);
    }
}

/// Pairs of accesses with nothing between them: threads 3 and 40 are of different warps, 3 and 5 of the same.
#[test]
fn two_threads_at_the_same_shared_bytes_without_a_barrier_are_found_in_every_order() {
    let body = r"
KERNEL(64) racing(int* out, int what) {
    SHARED(unsigned, tile, 64);
    tile[threadIdx.x] = threadIdx.x;
    sync_block();
    if (what == 0 && threadIdx.x == 3) tile[40] = 1;
    if (what == 1 && threadIdx.x == 40) out[0] = tile[3];
    if (what == 2 && threadIdx.x == 3) tile[5] = 1;
    if (what == 3 && (threadIdx.x == 3 || threadIdx.x == 5)) tile[63] = 1;
    if (what == 4 && threadIdx.x == 3) atomic_add(&tile[40], 1);
    if (what == 5) tile[threadIdx.x ^ 32] = 1;
    if (what == 6) out[threadIdx.x] = tile[threadIdx.x ^ 1];
    if (what == 7) reinterpret_cast<unsigned short*>(tile)[threadIdx.x ^ 1] = 1;
    out[threadIdx.x] = tile[threadIdx.x];
    tile[threadIdx.x] = 2;
}";
    for (what, bytes) in [(0, 160), (1, 12), (2, 20), (3, 252), (4, 160), (5, 0), (6, 0), (7, 0)] {
        for threads in ORDERS {
            let out = Memory::new("out", 256);
            let trial = Trial {
                emulator: Emulator { threads, ..Emulator::default() },
                threads: 64,
                ..Trial::warp("racing", body)
            };
            let (failure, ..) = trial.failure(&[Argument::Buffer(&out, 0), Argument::I32(what)]);
            let Failure::Race { place, access, did, .. } = failure else {
                panic!("a race was expected in {what}, not {failure}");
            };
            assert!(access != Access::Read || did != Access::Read, "two reads are no race");
            assert!(what > 4 || place == shared(256, bytes), "{place:?} in {what}");
        }
    }
    let out = Memory::new("out", 256);
    let trial = Trial { threads: 64, ..Trial::warp("racing", body) };
    trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(-1)]).unwrap();
}

#[test]
fn a_race_names_both_threads_and_the_line() {
    let body = r"
inline void store(int* to, int value) {
    *to = value;
}
KERNEL(64) told(int* out) {
    SHARED(int, tile, 64);
    out[threadIdx.x] = 1;
    if (threadIdx.x == 33) store(&tile[9], 1);
    if (threadIdx.x == 34) store(&tile[9], 2);
    if (threadIdx.x == 2) out[0] = tile[9];
}";
    let out = Memory::new("out", 256);
    let emulator = Emulator { threads: Order::Descending, ..Emulator::default() };
    let message = Trial { emulator, threads: 64, ..Trial::warp("told", body) }.emulate(&[Argument::Buffer(&out, 0)]);
    insta::assert_snapshot!(message.unwrap_err(), @"told, told, declared, line 7, block [0, 0, 0], thread 33: it writes byte 36 of a shared array of 256 bytes, which thread 34 writes: there is no barrier between the two");
    let (failure, _, thread, line) =
        Trial { threads: 64, ..Trial::warp("told", body) }.failure_at(&[Argument::Buffer(&out, 0)]);
    assert_eq!((failure, thread, line), (Failure::Unwritten { place: shared(256, 36) }, 2, 9));
}

#[test]
fn a_barrier_of_a_warp_orders_its_lanes_and_no_others() {
    let body = r"
KERNEL(64) warps(int* out, int across, int sync) {
    SHARED(int, tile, 64);
    tile[threadIdx.x] = threadIdx.x;
    if (sync) sync_warp();
    shuffle_xor(1, 1);
    out[threadIdx.x] = tile[threadIdx.x ^ across];
}";
    let out = Memory::new("out", 256);
    let trial = Trial { threads: 64, ..Trial::warp("warps", body) };
    trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(5), Argument::I32(1)]).unwrap();
    // Neither a shuffle nor another warp's barrier makes a write seen.
    for (across, sync) in [(5, 0), (32, 1)] {
        let emulator = Emulator { threads: Order::Random(3), ..Emulator::default() };
        let (failure, _, _, line) = Trial { emulator, threads: 64, ..Trial::warp("warps", body) }.failure_at(&[
            Argument::Buffer(&out, 0),
            Argument::I32(across),
            Argument::I32(sync),
        ]);
        let found = matches!(failure, Failure::Race { .. } | Failure::Unwritten { .. });
        assert!(found && [2, 6].contains(&line), "{failure}, line {line}");
    }
}

#[test]
fn what_was_read_before_a_shuffle_may_be_overwritten_by_the_same_warp() {
    let body = r"
KERNEL(64) renewed(int* out, int writer) {
    SHARED(int, tile, 32);
    if (threadIdx.x < 32) tile[threadIdx.x] = threadIdx.x;
    sync_block();
    int sum = threadIdx.x < 32 ? tile[31 - threadIdx.x] : 0;
    sum = shuffle_xor(sum, 1);
    if (static_cast<int>(threadIdx.x) == writer) tile[5] = sum;
    out[threadIdx.x] = sum;
}";
    for threads in ORDERS {
        let out = Memory::new("out", 256);
        let emulator = Emulator { threads, ..Emulator::default() };
        let trial = Trial { emulator, threads: 64, ..Trial::warp("renewed", body) };
        trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(3)]).unwrap();
        let (failure, ..) = trial.failure(&[Argument::Buffer(&out, 0), Argument::I32(40)]);
        assert!(matches!(failure, Failure::Race { .. }), "{failure}");
    }
}

#[test]
fn atomics_are_no_race_among_themselves() {
    let body = r"
KERNEL(64) counted_here(unsigned* out, int what) {
    SHARED(unsigned, counter, 1);
    if (threadIdx.x == 0) counter[0] = 0;
    sync_block();
    atomic_add(&counter[0], 1);
    if (what == 1 && threadIdx.x == 40) out[1] = counter[0];
    sync_block();
    if (threadIdx.x == 0) out[0] = counter[0];
}";
    let out = Memory::new("out", 8);
    let trial = Trial { threads: 64, ..Trial::warp("counted_here", body) };
    trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(0)]).unwrap();
    assert_eq!(out.read::<u32>()[0], 64);
    let (failure, _, thread, line) = trial.failure_at(&[Argument::Buffer(&out, 0), Argument::I32(1)]);
    let race = matches!(failure, Failure::Race { access: Access::Read, did: Access::Update, .. });
    assert!(race, "{failure}");
    assert_eq!((thread, line), (40, 6));
}

#[test]
fn a_matrix_load_is_a_read_of_its_rows() {
    let body = r"
KERNEL(32) fragments(unsigned* out, int sync) {
    SHARED(unsigned short, tile, 256);
    for (int at = threadIdx.x; at < 256; at += 32) tile[at] = at;
    if (sync) sync_warp();
    unsigned r[4];
    load_matrix_x4(r, &tile[8 * threadIdx.x]);
    out[threadIdx.x] = r[0] + r[1] + r[2] + r[3];
}";
    let out = Memory::new("out", 128);
    let trial = Trial::warp("fragments", body);
    trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(1)]).unwrap();
    let (failure, _, _, line) = trial.failure_at(&[Argument::Buffer(&out, 0), Argument::I32(0)]);
    assert!(matches!(failure, Failure::Race { .. } | Failure::Unwritten { .. }), "{failure}");
    assert_eq!(line, 6);
}

#[test]
fn an_access_that_is_not_aligned_for_its_type_is_found() {
    let body = r"
KERNEL(32) aligned(const float* in, float* out, int beyond) {
    const float4 four = *reinterpret_cast<const float4*>(in + beyond);
    if (threadIdx.x == 0) out[0] = four.x;
}";
    let (input, out) = (Memory::of("in", &[1.0_f32; 8]), Memory::new("out", 4));
    let arguments = |beyond| [Argument::Buffer(&input, 0), Argument::Buffer(&out, 0), Argument::I32(beyond)];
    let trial = Trial::warp("aligned", body);
    trial.emulate(&arguments(4)).unwrap();
    for beyond in [1, 2, 3] {
        let (failure, _, thread, line) = trial.failure_at(&arguments(beyond));
        let Failure::MisalignedValue { address, name } = failure else {
            panic!("a misaligned value was expected, not {failure}");
        };
        assert_eq!((address % 16, name.as_str()), (4 * beyond as usize, "const struct float4"));
        assert_eq!((thread, line), (0, 2));
    }
}

#[test]
fn indices_overflows_and_shifts_are_found_where_they_are_calculated() {
    let body = r"
KERNEL(32) calculated(int* out, int what, int value) {
    int locals[4] = {1, 2, 3, 4};
    if (what == 0) out[0] = locals[value];
    if (what == 1) out[0] = value * 2;
    if (what == 2) out[0] = 1 << value;
    if (what == 3) out[0] = 7 % value;
    if (what == 4) out[0] = -value;
}";
    let int = || "int".to_owned();
    let cases = [
        (0, 4, Failure::Index { index: 4, name: "int [4]".to_owned() }),
        (0, -1, Failure::Index { index: -1, name: "int [4]".to_owned() }),
        (1, 1 << 30, Failure::Overflow { name: int() }),
        (2, 32, Failure::Shift { name: int() }),
        (2, -1, Failure::Shift { name: int() }),
        (3, 0, Failure::Divided { name: int() }),
        (4, i32::MIN, Failure::Overflow { name: int() }),
    ];
    let out = Memory::new("out", 4);
    for (what, value, expected) in cases {
        let arguments = [Argument::Buffer(&out, 0), Argument::I32(what), Argument::I32(value)];
        let (failure, _, thread, line) = Trial::warp("calculated", body).failure_at(&arguments);
        assert_eq!((failure, thread, line), (expected, 0, 3 + what as u32));
    }
    for (what, value, expected) in [(0, 3, 4), (1, 5, 10), (2, 31, i32::MIN), (3, 4, 3), (4, 6, -6)] {
        let arguments = [Argument::Buffer(&out, 0), Argument::I32(what), Argument::I32(value)];
        Trial::warp("calculated", body).emulate(&arguments).unwrap();
        assert_eq!(out.read::<i32>(), [expected]);
    }
}

#[test]
fn constants_of_the_text_may_be_read_and_not_more() {
    let body = r"
constexpr int TABLE[8] = {3, 1, 4, 1, 5, 9, 2, 6};
KERNEL(32) constants(int* out, int scale) {
    if (threadIdx.x < 8) out[threadIdx.x] = TABLE[threadIdx.x] * scale;
    if (scale == 2) const_cast<int*>(TABLE)[threadIdx.x] = 1;
}";
    let out = Memory::new("out", 32);
    let trial = Trial::warp("constants", body);
    trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(1)]).unwrap();
    assert_eq!(out.read::<i32>(), [3, 1, 4, 1, 5, 9, 2, 6]);
    let (failure, _, thread, line) = trial.failure_at(&[Argument::Buffer(&out, 0), Argument::I32(2)]);
    assert!(matches!(failure, Failure::NoBuffer { .. }), "{failure}");
    assert_eq!((thread, line), (0, 4));
}
