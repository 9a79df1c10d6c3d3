//! The tuner on a bench that knows beforehand how fast everything is.

use std::time::{Duration, Instant};

use ihip_dsl::emit::{Kernel, Program};
use ihip_dsl::tuning::{AttendPrefill, DenseDecode, Tunable, Tuning};
use ihip_dsl::{Attention, Geometry, KvType, Phases, Plan};
use tempfile::TempDir;

use super::{Bench, Gate, Mistake, Origin, Outcome, Rejection, StepOutcome, TrialStore, Tuned, Tuner};
use crate::device::BlockLists;
use crate::jit::{Architecture, Resources};
use crate::{Error, Result};

const GEOMETRY: Geometry = Geometry {
    query_heads: 8,
    kv_heads: 2,
    head_dim: 128,
    kv_type: KvType::Bf16,
    page: 16,
    query_scale: 0.088,
    trained: 8192,
};

fn frequencies() -> Vec<f64> {
    (0..64).map(|pair| 10_000_f64.powf(f64::from(pair) / -64.0)).collect()
}

/// A dense layer: one kernel of prefill and one of decoding leave something open.
fn plan() -> Plan {
    Plan::dense(GEOMETRY, frequencies(), 1)
}

/// Knows how long every choice takes, as a share of the default.
struct Known<F> {
    shares: F,
    /// Shares are these once a choice is timed for the second time.
    second: fn(f64) -> f64,
    timed: Vec<(Tuning, usize)>,
    fails: Option<Tuning>,
    compiled: usize,
}

fn known<F: Fn(Tuning) -> f64>(shares: F) -> Known<F> {
    Known { shares, second: |share| share, timed: Vec::new(), fails: None, compiled: 0 }
}

/// What a program has chosen for a kernel.
fn chosen(program: &Program, tunable: &Tunable) -> Tuning {
    program.tunable().into_iter().find(|known| known.site == tunable.site).expect("it is there").tuning
}

impl<F: Fn(Tuning) -> f64> Bench for Known<F> {
    fn compile(&mut self, kernels: &[Kernel]) -> Vec<std::result::Result<Resources, String>> {
        self.compiled += kernels.len();
        let taken = |kernel: &Kernel| {
            let has = |constant: &str| kernel.text.contains(constant);
            if has("constexpr int TILE_KEYS = 16;") && has("constexpr int TILE_HEADS = 2;") {
                return Err("error: no".to_owned());
            }
            let spill_load_bytes = if has("constexpr int TILE_QUERIES = 256;") { 8 } else { 0 };
            Ok(Resources { shared_bytes: 1024, spill_load_bytes, ..Resources::default() })
        };
        kernels.iter().map(taken).collect()
    }

    fn check(&mut self, candidate: &Program, tunable: &Tunable) -> Result<Option<Mistake>> {
        let wrong = matches!(chosen(candidate, tunable), Tuning::DenseDecode(DenseDecode { warps: 8, stages: 2, .. }));
        Ok(wrong.then_some(Mistake::Lists { differ: 1, of: 3 }))
    }

    fn time(&mut self, candidate: &Program, tunable: &Tunable, samples: usize) -> Result<[Vec<f64>; 2]> {
        let tuning = chosen(candidate, tunable);
        if self.fails == Some(tuning) {
            return Err(Error::NotInPlan { name: "luck".to_owned() });
        }
        let mut share = (self.shares)(tuning);
        if self.timed.iter().any(|(known, _)| *known == tuning) {
            share = (self.second)(share);
        }
        self.timed.push((tuning, samples));
        Ok([vec![1e-3; samples], vec![share * 1e-3; samples]])
    }
}

fn tuner(folder: &TempDir) -> Tuner {
    let store = TrialStore::open(&folder.path().join("trials.jsonl")).unwrap();
    let origin = Origin { gpu: "A GPU".to_owned(), architecture: Architecture::SM_90, nvrtc: (13, 0) };
    Tuner::new(store, origin, 8)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn tune(folder: &TempDir, bench: &mut impl Bench) -> Vec<Tuned> {
    tuner(folder).tune(bench, &plan(), 4096, later()).unwrap()
}

fn dense(tuned: &[Tuned]) -> &Tuned {
    tuned.iter().find(|tuned| matches!(tuned.default, Tuning::DenseDecode(_))).expect("dense decoding is tuned")
}

const FAST: Tuning = Tuning::DenseDecode(DenseDecode { warps: 8, stages: 3, blocks: 128 });

#[test]
fn the_fastest_choice_that_is_right_is_taken_once_a_longer_look_confirms_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = known(|tuning| if tuning == FAST { 0.8 } else { 0.99 });
    let tuned = tune(&folder, &mut bench);
    assert_eq!(tuned.len(), 2);
    let dense = dense(&tuned);
    assert_eq!((dense.best, dense.medians, dense.left), (FAST, Some([1000.0, 800.0]), 0));
    assert_eq!(
        bench.timed.iter().filter(|(tuning, _)| *tuning == FAST).map(|(_, samples)| *samples).collect::<Vec<_>>(),
        [8, 24]
    );
    // What is not faster by the margin does not take the default's place, and prefill is timed less often.
    let prefill = tuned.iter().find(|tuned| !tuned.default.decodes()).expect("prefill is tuned");
    assert_eq!((prefill.best, prefill.medians), (prefill.default, None));
    assert!(bench.timed.iter().all(|(tuning, samples)| tuning.decodes() || *samples == 2));
}

#[test]
fn every_candidate_is_kept_and_what_is_invalid_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = tune(&folder, &mut known(|_| 1.0));
    let all = &dense(&tuned).rejected;
    let reason = |wanted: DenseDecode| {
        let found = all.iter().find(|(tuning, _)| *tuning == Tuning::DenseDecode(wanted));
        found.map(|(_, rejection)| rejection.to_string())
    };
    let shared = reason(DenseDecode { warps: 8, stages: 6, blocks: 128 });
    assert_eq!(shared.as_deref(), Some("394240 bytes of shared memory, 232448 at most"));
    let wrong = reason(DenseDecode { warps: 8, stages: 2, blocks: 128 });
    assert_eq!(wrong.as_deref(), Some("wrong: 1 of 3 block lists differ"));
    let prefill = tuned.iter().find(|tuned| !tuned.default.decodes()).expect("prefill is tuned");
    let spilled = Tuning::AttendPrefill(AttendPrefill { rows: 256, keys: 32 });
    let spills = Rejection::Spills { bytes: 8, default: 0 };
    assert!(prefill.rejected.contains(&(spilled, spills)), "{:?}", prefill.rejected);

    let store = TrialStore::open(&folder.path().join("trials.jsonl")).unwrap();
    let timed = store.trials().iter().filter(|trial| matches!(trial.outcome, Outcome::Timed { .. })).count();
    assert_eq!(timed, tuned.iter().map(|tuned| tuned.timed).sum::<usize>());
    let rejected: usize = tuned.iter().map(|tuned| tuned.rejected.len()).sum();
    assert_eq!(store.trials().len(), timed + rejected);
}

#[test]
fn a_second_run_tries_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    let shares = |tuning| if tuning == FAST { 0.8 } else { 1.0 };
    let first = tune(&folder, &mut known(shares));
    let mut bench = known(shares);
    assert_eq!(tune(&folder, &mut bench), first);
    assert_eq!((bench.timed.len(), bench.compiled), (0, 0));
}

#[test]
fn a_choice_that_was_fast_by_chance_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = known(|tuning| if tuning == FAST { 0.8 } else { 1.0 });
    bench.second = |_| 1.0;
    let tuned = tune(&folder, &mut bench);
    assert_eq!((dense(&tuned).best, dense(&tuned).medians), (dense(&tuned).default, None));
}

#[test]
fn nothing_is_tried_when_the_time_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = known(|_| 0.5);
    let tuned = tuner(&folder).tune(&mut bench, &plan(), 4096, Instant::now()).unwrap();
    assert_eq!((bench.timed.len(), bench.compiled), (0, 0));
    assert!(tuned.iter().all(|tuned| tuned.left > 0 && tuned.timed == 0 && tuned.best == tuned.default), "{tuned:?}");
    // The next run goes on.
    assert_eq!(dense(&tune(&folder, &mut bench)).left, 0);
}

#[test]
fn a_candidate_that_fails_ends_the_run_and_is_passed_over_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = known(|_| 1.0);
    bench.fails = Some(FAST);
    let error = tuner(&folder).tune(&mut bench, &plan(), 4096, later()).unwrap_err();
    assert!(error.to_string().contains("luck"), "{error}");
    let tuned = tune(&folder, &mut bench);
    let message = "the launch list names luck, which this plan does not have".to_owned();
    assert!(dense(&tuned).rejected.contains(&(FAST, Rejection::Fails { message })), "{tuned:?}");
}

#[test]
fn the_gate_lets_the_reference_through_and_nothing_else() {
    let dense = Phases { prefill: Attention::Dense, decode: Attention::Dense };
    let geometry = Geometry { query_heads: 2, kv_heads: 1, head_dim: 32, ..GEOMETRY };
    let gate = Gate::new(&dense, &geometry, &frequencies()[..16], 7);
    let case = gate.case(true);
    assert_eq!((case.queries.len(), case.keys.len(), case.first + case.rows), (64, 4096 * 32, 4096));
    let lists = |blocks: Vec<i32>, counts| Some(BlockLists { rankings: 1, width: 2, blocks, counts });
    let right = StepOutcome { out: vec![0.5, -1.0], lists: lists(vec![8, 16, 24, 32], vec![2, 1]) };
    assert_eq!(gate.compare(&right, &right), None);
    // Entries behind the count do not matter; those that count do.
    let behind = StepOutcome { lists: lists(vec![8, 16, 24, 40], vec![2, 1]), ..right.clone() };
    assert_eq!(gate.compare(&right, &behind), None);
    let other = StepOutcome { lists: lists(vec![8, 16, 40, 40], vec![2, 1]), ..right.clone() };
    assert_eq!(gate.compare(&right, &other), Some(Mistake::Lists { differ: 1, of: 2 }));
    let shorter = StepOutcome { lists: lists(vec![8, 16, 24, 32], vec![2, 0]), ..right.clone() };
    assert_eq!(gate.compare(&right, &shorter), Some(Mistake::Lists { differ: 1, of: 2 }));
    for out in [vec![0.5, -1.1], vec![0.5, f32::NAN], vec![0.5]] {
        let off = StepOutcome { out, ..right.clone() };
        assert!(matches!(gate.compare(&right, &off), Some(Mistake::Output { .. })), "{off:?}");
    }
    let near = StepOutcome { out: vec![0.5, -1.01], ..right.clone() };
    assert_eq!(gate.compare(&right, &near), None);
}
