//! A cache of two tiers never gives a wrong row: every row holds what follows from its name, requests come, grow and are
//! cancelled in any order while pages move, and every row is compared. Three times over:
//!
//! | file | what moves pages | what compares rows |
//! |---|---|---|
//! | `requests` | the store that the CPU device has its keys and values in, by the machine of the slots; requests fork there | its reader |
//! | `kernels` | the generated kernels, in the emulator or on a GPU | a kernel, in the attention's place and after each operation |
//! | `devices` | the CPU device, or a GPU's with its two streams and its graphs | the test, or that kernel |
//!
//! A GPU's cache is that of one request, which shares nothing and does not fork.
//!
//! `IHIP_COHERENCE_OPERATIONS` sets how many operations are drawn, `IHIP_COHERENCE_SEED` from which number: the same two
//! give the same run. `IHIP_TEST_DEVICE=cuda` asks for a GPU.

mod devices;
mod faults;
mod kernels;
mod requests;
mod rows;

use devices::{Examined, Setting};
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::jit::Architecture;
use ihip_runtime::kv::{Counts, Tier};
use ihip_tests::support::nvrtc::nvrtc;
use requests::Requests;
use rows::Verifier;

/// Operations of a run that nobody asked to be longer: on the store, by kernels, on a device.
const OPERATIONS: usize = 100_000;
const KERNEL_OPERATIONS: usize = 2000;
const DEVICE_OPERATIONS: usize = 5000;

/// What was seen of requests that kernels or a device serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Report {
    /// Rows that were compared.
    verified: u64,
    /// Rows among them that hold something else.
    wrong: u64,
    /// Pages of keys and of values that decoding steps attended to, by where they were; rows on the CPU device.
    hits: u64,
    misses: u64,
    /// Pages that came to the GPU, and pages that left it.
    promotions: u64,
    evictions: u64,
    /// Requests that came to their end, and those that were cancelled.
    ended: u64,
    cancelled: u64,
}

impl Report {
    fn check(&self, run: &str, operations: usize, seed: usize) {
        let Self { verified, wrong, hits, misses, promotions, evictions, ended, cancelled } = *self;
        let done = [
            ("hits", hits, 1),
            ("misses", misses, 10),
            ("promotions", promotions, 20),
            ("evictions", evictions, 20),
            ("requests that ended", ended, 2000),
            ("cancelled requests", cancelled, 400),
        ];
        hold(run, [verified, wrong], &done, operations, seed);
        assert!(verified > 100 * operations as u64, "{verified} rows in {operations} operations");
    }
}

/// Holds a run to no wrong row among those verified, and to having `done` what it is about: each a name, how often it came,
/// and the operations in which it has to come once.
#[expect(clippy::print_stdout, reason = "how much was verified is what a long run is for")]
fn hold(run: &str, [verified, wrong]: [u64; 2], done: &[(&str, u64, u64)], operations: usize, seed: usize) {
    let counts: Vec<_> = done.iter().map(|(what, count, _)| format!("{count} {what}")).collect();
    println!(
        "{run}: seed {seed}, {operations} operations: {verified} rows verified, {wrong} wrong; {}",
        counts.join(", ")
    );
    assert_eq!(wrong, 0, "rows are wrong: IHIP_COHERENCE_OPERATIONS={operations} IHIP_COHERENCE_SEED={seed} again");
    for (what, count, each) in done {
        let least = operations as u64 / each;
        assert!(*count >= least, "{count} {what} in {operations} operations, and {least} at least are due");
    }
}

fn variable(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not {text:?}")),
        Err(_) => default,
    }
}

/// Operations and seed of a run.
fn asked(default: usize) -> (usize, usize) {
    (variable("IHIP_COHERENCE_OPERATIONS", default), variable("IHIP_COHERENCE_SEED", 1))
}

#[test]
fn no_row_is_wrong_after_any_operations() {
    let (operations, seed) = asked(OPERATIONS);
    let mut requests = Requests::new(seed as u64);
    for _ in 0..operations {
        requests.operate();
    }
    let requests::Report { verified, wrong, refused, cancelled, forked } = requests.report();
    let Counts { hits, misses, promotions, evictions } = requests.counts();
    let done = [
        ("hits", hits, 100),
        ("misses", misses, 100),
        ("promotions", promotions, 100),
        ("evictions", evictions, 100),
        ("forks", forked, 100),
        ("cancelled requests", cancelled, 100),
        ("refusals", refused, 100),
    ];
    hold("store", [verified, wrong], &done, operations, seed);
    assert_eq!(hits + misses, verified);
    requests.cancel_all();
    assert_eq!((requests.taken(Tier::Gpu), requests.taken(Tier::Host)), (0, 0));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut requests = Requests::new(seed);
        (0..2_000).for_each(|_| requests.operate());
        (requests.report(), requests.counts())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_wrong_row_is_found_in_either_tier() {
    for tier in [Tier::Gpu, Tier::Host] {
        let mut requests = Requests::new(3);
        while !requests.spoil(tier) {
            requests.operate();
        }
        requests.read_all();
        assert!(requests.report().wrong > 0, "a spoilt row on the {tier}");
    }
}

#[test]
fn no_row_is_wrong_whatever_kernels_move() {
    let (operations, seed) = asked(KERNEL_OPERATIONS);
    let mut requests = kernels::Requests::new(seed as u64);
    (0..operations).for_each(|_| requests.operate());
    requests.report().check("kernels", operations, seed);
    let [gathered, written] = requests.prefilled();
    let least = operations as u64 / 10;
    assert!(gathered >= least && written >= least, "{gathered} pages came for prefill and {written} went home");
}

#[test]
fn the_same_seed_gives_the_same_run_of_kernels() {
    let run = |seed| {
        let mut requests = kernels::Requests::new(seed);
        (0..60).for_each(|_| requests.operate());
        requests.report()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_wrong_row_that_kernels_moved_is_found_in_either_tier() {
    for (tier, kept) in [(Tier::Gpu, false), (Tier::Host, false), (Tier::Gpu, true)] {
        let mut requests = kernels::Requests::new(3);
        let wrong = loop {
            requests.operate();
            if let Some(wrong) = requests.spoil(tier, kept) {
                break wrong;
            }
        };
        assert_eq!(wrong, 1, "a spoilt row on the {tier}, kept besides: {kept}");
    }
}

#[test]
fn the_kernel_that_verifies_rows_compiles_for_every_gpu() {
    let verifiers = kernels::TYPES.map(kernels::verifier).into_iter().chain([Setting::GPU.verifier()]);
    for Verifier { kernel, .. } in verifiers {
        for architecture in Architecture::TESTED {
            let compiled = nvrtc().compile(&kernel.name, &kernel.text, architecture);
            let resources = compiled.unwrap_or_else(|error| panic!("{error}")).resources;
            assert_eq!(resources.spill_store_bytes, 0, "{architecture}: {resources:?}");
        }
    }
}

/// Does something on the device that `IHIP_TEST_DEVICE` names: the CPU where it names the emulator or nothing.
macro_rules! on_a_device {
    ($function:ident) => {
        match std::env::var("IHIP_TEST_DEVICE").as_deref() {
            Ok("cuda") => {
                let device = CudaDevice::new(0, Precision::F32);
                $function(
                    &mut device.unwrap_or_else(|error| panic!("IHIP_TEST_DEVICE is cuda, but {error}")),
                    Setting::GPU,
                );
            }
            _ => $function(&mut CpuDevice::new(2).expect("two threads"), Setting::CPU),
        }
    };
}

fn operate<D: Examined>(device: &mut D, setting: Setting) {
    let (operations, seed) = asked(DEVICE_OPERATIONS);
    let mut requests = devices::Requests::new(device, setting, seed as u64);
    (0..operations).for_each(|_| requests.operate());
    requests.report().check("device", operations, seed);
}

fn spoil<D: Examined>(device: &mut D, setting: Setting) {
    let [tokens, wrong] = devices::Requests::new(device, setting, 3).spoil();
    assert_eq!(wrong, tokens, "one row of each token was spoilt");
}

#[test]
fn no_row_of_a_device_is_wrong() {
    on_a_device!(operate);
}

#[test]
fn wrong_rows_of_a_device_are_found_in_either_tier() {
    on_a_device!(spoil);
}
