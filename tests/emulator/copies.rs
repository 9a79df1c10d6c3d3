//! Asynchronous copies: early, late, zero-filled, waited for by groups.

use ihip_tests::support::emulator::{Argument, CopyTime, Emulator, Memory};

use super::Trial;

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

fn copied(copies: CopyTime, wait: i32) -> Vec<i32> {
    let values: Vec<i32> = (0..384).collect();
    let (input, out) = (Memory::of("in", &values), Memory::new("out", 384 * 4));
    let emulator = Emulator { copies, ..Emulator::default() };
    let trial = Trial { emulator, ..Trial::warp("copied", BODY) };
    trial.run(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0), Argument::I32(wait)]).unwrap();
    out.read()
}

/// The values in groups that have been waited for, −1 elsewhere, zeros where the copy was not valid.
fn expected(groups: i32) -> Vec<i32> {
    let value = |at: i32| match at {
        at if at / 128 >= groups => -1,
        at if at % 128 / 4 == 9 => 0,
        at => at,
    };
    (0..384).map(value).collect()
}

#[test]
fn late_copies_are_there_only_after_their_wait() {
    for (wait, groups) in [(0, 3), (1, 2), (2, 1), (3, 0)] {
        assert_eq!(copied(CopyTime::Late, wait), expected(groups), "wait {wait}");
    }
}

#[test]
fn early_copies_are_there_at_once() {
    assert_eq!(copied(CopyTime::Early, 3), expected(3));
}

#[test]
fn random_copies_are_all_there_after_the_wait() {
    assert_eq!(copied(CopyTime::Random, 0), expected(3));
    let without = copied(CopyTime::Random, 3);
    assert_ne!(without, expected(3));
    assert_ne!(without, expected(0));
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
        trial.run(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]).unwrap();
        assert_eq!(out.read::<f32>(), [value; 128]);
    }
}
