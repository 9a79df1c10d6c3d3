//! What a GPU would let pass or hang on.

use ihip_tests::support::emulator::{Argument, Collective, Compiled, EmulatorError, Failure, Memory, Place, Source};

use super::Trial;

#[test]
fn a_thread_that_leaves_before_the_barrier_is_a_deadlock() {
    let body = r"
KERNEL(64) early(int* out) {
    if (threadIdx.x == 40 && blockIdx.y == 1) return;
    sync_block();
    out[threadIdx.x] = 1;
}";
    let out = Memory::new("out", 256);
    let trial = Trial { threads: 64, grid: [1, 3, 1], ..Trial::warp("early", body) };
    let (failure, block, thread) = trial.failure(&[Argument::Buffer(&out, 0)]);
    // Of all who wait, the nearest is named: one of the same warp.
    let left = Failure::Left { waits: 32, collective: Collective::SyncBlock, left: 40 };
    assert_eq!((failure, block, thread), (left, [0, 1, 0], 40));
}

#[test]
fn a_barrier_after_a_thread_has_left_is_a_deadlock() {
    let body = r"
KERNEL(64) early(int* out) {
    if (threadIdx.x < 32) return;
    sync_block();
    out[threadIdx.x] = 1;
}";
    let out = Memory::new("out", 256);
    let trial = Trial { threads: 64, ..Trial::warp("early", body) };
    let (failure, _, thread) = trial.failure(&[Argument::Buffer(&out, 0)]);
    let left = Failure::Left { waits: 32, collective: Collective::SyncBlock, left: 0 };
    assert_eq!((failure, thread), (left, 32));
}

#[test]
fn a_shuffle_from_a_lane_that_left_is_found() {
    let body = r"
KERNEL(32) shuffled(int* out) {
    if (threadIdx.x == 31) return;
    out[threadIdx.x] = shuffle_xor(1, 1);
}";
    let out = Memory::new("out", 128);
    let (failure, _, thread) = Trial::warp("shuffled", body).failure(&[Argument::Buffer(&out, 0)]);
    let left = Failure::Left { waits: 0, collective: Collective::Shuffle, left: 31 };
    assert_eq!((failure, thread), (left, 31));
}

#[test]
fn a_divergent_warp_is_found() {
    let body = r"
KERNEL(64) divergent(unsigned* out) {
    if (threadIdx.x != 37) out[threadIdx.x] = ballot(true);
    sync_block();
}";
    let out = Memory::new("out", 256);
    let trial = Trial { threads: 64, ..Trial::warp("divergent", body) };
    let (failure, _, thread) = trial.failure(&[Argument::Buffer(&out, 0)]);
    let divergent =
        Failure::Divergent { first: 32, in_first: Collective::Ballot, second: 37, in_second: Collective::SyncBlock };
    assert_eq!((failure, thread), (divergent, 37));
}

#[test]
fn a_read_behind_a_buffer_names_buffer_and_thread() {
    let body = r"
KERNEL(64) beyond(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x]; }";
    let (input, out) = (Memory::of("in", &[1.0_f32; 60]), Memory::new("out", 256));
    let trial = Trial { threads: 64, ..Trial::warp("beyond", body) };
    let (failure, _, thread) = trial.failure(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]);
    let place = Place { buffer: "in".to_owned(), bytes: 240, offset: 240 };
    assert_eq!((failure, thread), (Failure::OutOfBounds { place }, 60));
    let message = trial.emulate(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]).unwrap_err();
    let expected = "beyond, beyond, declared, line 1, block [0, 0, 0], thread 60: \
                    access to byte 240 of in, which has 240 bytes";
    assert_eq!(message.to_string(), expected);
}

#[test]
fn writes_beside_a_buffer_are_found_at_either_end() {
    let body = r"
KERNEL(32) beside(float* out, int at) { if (threadIdx.x == 0) out[at] = 1.0f; }";
    for (at, offset) in [(-1, -4), (-16, -64), (13, 52), (15, 60), (16, 64), (-2000, -8000)] {
        let out = Memory::new("out", 52);
        let (failure, _, thread) = Trial::warp("beside", body).failure(&[Argument::Buffer(&out, 0), Argument::I32(at)]);
        let place = Place { buffer: "out".to_owned(), bytes: 52, offset };
        assert_eq!((failure, thread), (Failure::OutOfBounds { place }, 0));
    }
}

#[test]
fn a_write_beside_a_shared_array_is_found() {
    let body = r"
KERNEL(32) beside_shared(int at, int value) {
    SHARED(int, first, 5);
    SHARED_DYNAMIC(int, last);
    if (threadIdx.x == 0) first[4] = last[3] = 0;
    sync_block();
    if (threadIdx.x == 3) (at < 0 ? last : first)[at] = value;
}";
    for (at, bytes, offset) in [(5, 20, 20), (6, 20, 24), (-1, 16, -4), (-7, 16, -28)] {
        let trial = Trial { shared_bytes: 16, ..Trial::warp("beside_shared", body) };
        let (failure, _, thread) = trial.failure(&[Argument::I32(at), Argument::I32(-1)]);
        let place = Place { buffer: "a shared array".to_owned(), bytes, offset };
        assert_eq!((failure, thread), (Failure::OutOfBounds { place }, 3));
    }
    let trial = Trial { shared_bytes: 16, ..Trial::warp("beside_shared", body) };
    trial.emulate(&[Argument::I32(4), Argument::I32(-1)]).unwrap();
}

#[test]
fn a_read_behind_dynamic_shared_memory_is_found() {
    let body = r"
KERNEL(32) behind_shared(float* out) {
    SHARED_DYNAMIC(float, tile);
    if (threadIdx.x < 28) tile[threadIdx.x] = 1.0f;
    out[threadIdx.x] = tile[threadIdx.x];
}";
    let out = Memory::new("out", 128);
    let trial = Trial { shared_bytes: 112, ..Trial::warp("behind_shared", body) };
    let (failure, _, thread) = trial.failure(&[Argument::Buffer(&out, 0)]);
    let place = Place { buffer: "a shared array".to_owned(), bytes: 112, offset: 112 };
    assert_eq!((failure, thread), (Failure::OutOfBounds { place }, 28));
}

#[test]
fn primitives_refuse_addresses_they_cannot_take() {
    let body = r"
KERNEL(32) addresses(const float* in, int what) {
    SHARED(float, tile, 128);
    unsigned r[4];
    if (what == 0) copy_async_16(&tile[4 * threadIdx.x], in + 1, true);
    if (what == 1) copy_async_16(&tile[1], in, true);
    if (what == 2) copy_async_16(const_cast<float*>(in), in, true);
    if (what == 3) load_matrix_x4(r, &tile[2]);
    if (what == 4) load_matrix_x4_transposed(r, in);
    if (what == 5) { copy_async_16(&tile[0], in + 8, true); copy_async_commit(); copy_async_wait<0>(); }
}";
    let input = Memory::of("in", &[0.0_f32; 8]);
    let place = Place { buffer: "in".to_owned(), bytes: 32, offset: 32 };
    let expected = [
        Failure::Misaligned { primitive: "copy_async_16", beyond: 4 },
        Failure::Misaligned { primitive: "copy_async_16", beyond: 4 },
        Failure::NotShared { primitive: "copy_async_16" },
        Failure::Misaligned { primitive: "load_matrix_x4", beyond: 8 },
        Failure::NotShared { primitive: "load_matrix_x4_transposed" },
        Failure::OutOfBounds { place },
    ];
    for (what, expected) in (0..).zip(expected) {
        let arguments = [Argument::Buffer(&input, 0), Argument::I32(what)];
        let (failure, _, thread) = Trial::warp("addresses", body).failure(&arguments);
        assert_eq!((failure, thread), (expected, 0));
    }
}

#[test]
fn stack_division_and_static_shared_memory_have_their_own_messages() {
    let body = r"
KERNEL(32) deep(int* out) {
    volatile int locals[40000];
    for (int at = 0; at < 40000; at++) locals[at] = at;
    out[0] = locals[out[0]];
}
KERNEL(32) divided(int* out) { out[0] = 100 / out[0]; }
KERNEL(32) crowded(int* out) {
    SHARED(float, tile, 12289);
    out[0] = tile[0];
}";
    let expected = [
        ("deep", Failure::StackOverflow),
        ("divided", Failure::Divided { name: "int".to_owned() }),
        ("crowded", Failure::StaticShared { bytes: 49156, limit: 49152 }),
    ];
    for (name, expected) in expected {
        let out = Memory::of("out", &[0]);
        let (failure, _, thread) = Trial::warp(name, body).failure(&[Argument::Buffer(&out, 0)]);
        assert_eq!((failure, thread), (expected, 0));
    }
}

#[test]
fn wrong_arguments_and_shapes_are_refused() {
    let body = "KERNEL(32) shapes(float* out, int count) { out[0] = count; }";
    let out = Memory::new("out", 4);
    let swapped = Trial::warp("shapes", body).emulate(&[Argument::I32(1), Argument::Buffer(&out, 0)]);
    let message = swapped.unwrap_err().to_string();
    assert!(message.starts_with("shapes takes arguments (pi) and was given (ip)"), "{message}");
    let odd = Trial { threads: 48, ..Trial::warp("shapes", body) }.emulate(&[]).unwrap_err();
    assert_eq!(odd.to_string(), "shapes has 48 threads a block; it must be a multiple of 32 up to 1024");
    let large = Trial { shared_bytes: 232_449, ..Trial::warp("shapes", body) }.emulate(&[]).unwrap_err();
    assert!(large.to_string().starts_with("shapes asks for 232449 bytes of dynamic shared memory"), "{large}");
}

#[test]
fn a_text_that_does_not_compile_shows_the_compilers_words() {
    let refused = Trial::warp("refused", "KERNEL(32) refused(float* out) { out[0] = undeclared; }").emulate(&[]);
    let Err(EmulatorError::Compile { kernel, file, messages }) = refused else {
        panic!("the compiler takes undeclared names");
    };
    assert_eq!(kernel, "refused");
    assert!(messages.contains("undeclared"), "{messages}");
    assert!(std::fs::read_to_string(file).unwrap().contains("out[0] = undeclared"));
}

#[test]
fn a_missing_compiler_is_a_plain_message() {
    let text = "KERNEL(32) uncompiled() {}";
    let source = Source { name: "uncompiled", text, threads: 32, shared_bytes: 0 };
    let message = Compiled::with_compiler(&source, "no-such-compiler").unwrap_err().to_string();
    assert!(message.starts_with("no C++ compiler: no-such-compiler could not be started"), "{message}");
    assert!(message.ends_with("install g++ or clang++, or name one in CXX"), "{message}");
}

#[test]
fn a_failure_leaves_the_emulator_usable() {
    let body = r"
KERNEL(32) again(int* out, int at) { out[threadIdx.x * at] = threadIdx.x; sync_warp(); }";
    let out = Memory::new("out", 128);
    for _ in 0..3 {
        let trial = Trial::warp("again", body);
        let (_, _, thread) = trial.failure(&[Argument::Buffer(&out, 0), Argument::I32(2)]);
        assert_eq!(thread, 16);
        trial.emulate(&[Argument::Buffer(&out, 0), Argument::I32(1)]).unwrap();
        assert_eq!(out.read::<i32>(), (0..32).collect::<Vec<_>>());
    }
}
