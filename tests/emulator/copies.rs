//! Asynchronous copies: early, late, zero-filled, waited for by groups.

use ihip_tests::support::emulator::{Access, Argument, CopyTime, Emulator, EmulatorError, Failure, Memory, Place};

use super::{Given, Trial};

const BODY: &str = r"
KERNEL(32) copied(const int* in, int* out, int wait) {
    SHARED(int, tile, 3 * 128);
    for (int group = 0; group < 3; group++) {
        copy_async_16(&tile[group * 128 + 4 * threadIdx.x], in + group * 128 + 4 * threadIdx.x, threadIdx.x != 9);
        copy_async_commit();
    }
    if (wait == 0) copy_async_wait<0>();
    if (wait == 1) copy_async_wait<1>();
    if (wait == 2) copy_async_wait<2>();
    sync_block();
    for (int at = threadIdx.x; at < 3 * 128; at += 32) out[at] = tile[at];
}";

/// What is copied, with a wait after which `wait` groups may be under way: the tile, or what is wrong with it.
fn copied(copies: CopyTime, wait: i32) -> Result<Vec<i32>, EmulatorError> {
    let values: Vec<i32> = (0..384).collect();
    let (input, out) = (Memory::of("in", &values), Memory::new("out", 384 * 4));
    let emulator = Emulator { copies, ..Emulator::default() };
    let trial = Trial { emulator, ..Trial::warp("copied", BODY) };
    trial.emulate(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0), Argument::I32(wait)])?;
    Ok(out.read())
}

/// The values, with zeros where the copy was not valid.
fn expected() -> Vec<i32> {
    (0..384).map(|at| if at % 128 / 4 == 9 { 0 } else { at }).collect()
}

const TIMES: [CopyTime; 3] = [CopyTime::Late, CopyTime::Early, CopyTime::Random];

#[test]
fn copies_are_there_after_their_wait_whenever_they_are_made() {
    for copies in TIMES {
        assert_eq!(copied(copies, 0).unwrap(), expected(), "{copies:?}");
    }
}

#[test]
fn a_group_that_was_not_waited_for_is_found_whenever_it_is_made() {
    for copies in TIMES {
        for (wait, groups) in [(1, 2), (2, 1), (3, 0)] {
            let Err(EmulatorError::Failed { line, thread, failure, .. }) = copied(copies, wait) else {
                panic!("{copies:?}, wait {wait}: bytes that are under way were read");
            };
            // Thread 31 was the last at the barrier and goes on first, up to the first group that is under way.
            let offset = groups * 512 + 31 * 4;
            let place = Place { buffer: "a shared array".to_owned(), bytes: 1536, offset };
            let unfinished = Failure::UnfinishedCopy { place, access: Access::Read, copier: 7 };
            assert_eq!((failure, thread, line.number), (unfinished, 31, 11), "{copies:?}, wait {wait}");
        }
    }
}

#[test]
fn copies_are_all_there_after_the_wait_for_all() {
    let values: Vec<i32> = (0..384).collect();
    let given = [Given::values(&values), Given::room::<i32>(384), Given::I32(0)];
    assert_eq!(Trial::warp("copied", BODY).results(&given).of::<i32>(1), expected());
}

#[test]
fn a_copy_that_another_thread_reads_without_a_barrier_is_found() {
    let body = r"
KERNEL(32) unordered_copy(const int* in, int* out) {
    SHARED(int, tile, 128);
    copy_async_16(&tile[4 * threadIdx.x], in + 4 * threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<0>();
    out[threadIdx.x] = tile[threadIdx.x];
}";
    let (input, out) = (Memory::of("in", &[7; 128]), Memory::new("out", 128));
    for copies in TIMES {
        let trial =
            Trial { emulator: Emulator { copies, ..Emulator::default() }, ..Trial::warp("unordered_copy", body) };
        let (failure, _, thread, line) = trial.failure_at(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]);
        let place = Place { buffer: "a shared array".to_owned(), bytes: 512, offset: 4 };
        let race = Failure::Race { place, access: Access::Read, other: 0, did: Access::Write };
        assert_eq!((failure, thread, line), (race, 1, 6));
    }
}

#[test]
fn a_copy_into_bytes_that_others_still_read_is_found() {
    let body = r"
KERNEL(64) overtaken(const int* in, int* out) {
    SHARED(int, tile, 256);
    tile[threadIdx.x] = 1;
    sync_block();
    out[threadIdx.x] = tile[63 - threadIdx.x];
    copy_async_16(&tile[4 * threadIdx.x], in, true);
}";
    let (input, out) = (Memory::of("in", &[7; 4]), Memory::new("out", 256));
    for copies in TIMES {
        let emulator = Emulator { copies, ..Emulator::default() };
        let trial = Trial { emulator, threads: 64, ..Trial::warp("overtaken", body) };
        let (failure, _, thread, line) = trial.failure_at(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]);
        // Thread 63 was the last at the barrier and goes on first: it has read what thread 0 copies to.
        assert!(matches!(failure, Failure::Race { access: Access::Write, did: Access::Read, .. }), "{failure}");
        assert_eq!((thread, line), (0, 6));
    }
}

#[test]
fn a_late_copy_reads_at_the_wait_and_an_early_one_at_the_start() {
    let body = r"
KERNEL(32) overwritten(float* in, float* out) {
    SHARED(float, tile, 128);
    copy_async_16(&tile[4 * threadIdx.x], in + 4 * threadIdx.x, true);
    copy_async_commit();
    for (int at = 0; at < 4; at++) in[4 * threadIdx.x + at] = 2.0f;
    copy_async_wait<0>();
    for (int at = 0; at < 4; at++) out[4 * threadIdx.x + at] = tile[4 * threadIdx.x + at];
}";
    for (copies, value) in [(CopyTime::Late, 2.0), (CopyTime::Early, 1.0)] {
        let (input, out) = (Memory::of("in", &[1.0_f32; 128]), Memory::new("out", 512));
        let trial = Trial { emulator: Emulator { copies, ..Emulator::default() }, ..Trial::warp("overwritten", body) };
        trial.emulate(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]).unwrap();
        assert_eq!(out.read::<f32>(), [value; 128]);
    }
}
