//! Pipelines, shapes, lengths and data that are drawn, on the device that `IHIP_TEST_DEVICE` names, against f64 with a
//! bound for everything that is rounded. No case is left out for being near a tie: what the kernels decided there is
//! asked for, and followed.
//!
//! A case that fails is made smaller and written to `proof/regressions.txt`, which every run tries first.

mod call;
mod draw;
mod replay;
mod table;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use ihip_dsl::emit::Activation;
use ihip_dsl::words::{Place, Takes};
use ihip_dsl::{KvType, LayerPruning, Pipeline, Refresh};
use ihip_model::registry;
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use ihip_tests::support::page;
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use call::Checked;
use draw::{Asked, Drawn, Kind};
use table::Tally;

use crate::families::{HEAD_DIMS, Layer};

/// Layers that are drawn, and calls of each and of those that were chosen.
const LAYERS: usize = 30;
const CALLS: u32 = 2;
/// Calls of a layer of each type and head.
const CALLS_OF_EACH: u32 = 2;
/// The same where nothing is rounded.
const EXACT_LAYERS: usize = 18;
const EXACT_CALLS: u32 = 2;

fn layers() -> Vec<Drawn> {
    [draw::layers(LAYERS, false), draw::chosen()].concat()
}

/// Pruned and dense layers of each type and head.
fn layers_of_each() -> Vec<Drawn> {
    [draw::of_every_head(), draw::dense(false)].concat()
}

/// `layers`, and those of them again that have texts for the host's instructions alone.
fn with_own_texts(layers: Vec<Drawn>) -> Vec<Drawn> {
    let own = draw::beyond_portable(&layers);
    [layers, own].concat()
}

/// A prefill call, and decoding steps after it.
fn ask(drawn: &Drawn, attention: &mut Attention, asked: &Asked, tally: &mut Tally) -> Result<(), String> {
    let mut checked = Checked::new(drawn, attention, tally);
    checked.prefill(&asked.data(drawn, asked.rows), asked.spare).map_err(|fault| format!("prefill: {fault}"))?;
    let steps = asked.restarts.len();
    checked
        .decode(&asked.data(drawn, steps), asked.spare, &asked.restarts)
        .map_err(|fault| format!("decoding: {fault}"))
}

/// Draws calls of layer `number`.
fn check(number: usize, drawn: &Drawn, calls: u32) -> Tally {
    let persistence = FileFailurePersistence::Direct("proof/regressions.txt");
    let config = Config { cases: calls, failure_persistence: Some(Box::new(persistence)), ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[number as u8; 32]);
    let state = RefCell::new((drawn.attention(), Tally::default()));
    let result = TestRunner::new_with_rng(config, rng).run(&draw::asked(drawn), |asked| {
        let (attention, tally) = &mut *state.borrow_mut();
        tally.situations.extend(asked.situations(drawn));
        ask(drawn, attention, &asked, tally).map_err(TestCaseError::fail)
    });
    result.unwrap_or_else(|error| panic!("{drawn:?}: {error}"));
    state.into_inner().1
}

/// Draws calls of every one of `layers`, several layers side by side.
fn check_all(layers: &[Drawn], calls: u32) -> Tally {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || {
            let mut tally = Tally::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(drawn) = layers.get(number) else { return tally };
                tally.join(check(number, drawn, calls));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut tally = Tally::default();
        for worker in workers {
            match worker.join() {
                Ok(seen) => tally.join(seen),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        tally
    })
}

/// Writes what was seen to the folder that `IHIP_TEST_TABLE` names, where it names one.
fn report(mode: &str, seen: &Tally) {
    let device = std::env::var("IHIP_TEST_DEVICE").unwrap_or_else(|_| "emulator".to_owned());
    if let Some(folder) = std::env::var_os("IHIP_TEST_TABLE") {
        let file = Path::new(&folder).join(format!("{device}-{mode}.toml"));
        std::fs::write(&file, seen.to_toml(&device)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

#[test]
fn drawn_calls_are_off_by_no_more_than_rounding_allows() {
    let mut seen = check_all(&with_own_texts(layers()), CALLS);
    seen.join(check_all(&with_own_texts(layers_of_each()), CALLS_OF_EACH));
    let never: Vec<String> = draw::situations().difference(&seen.situations).cloned().collect();
    assert!(never.is_empty(), "never drawn: {never:?}");
    let halving = ["prefill", "decode"].map(|phase| format!("scan, halving, {phase}"));
    let halving =
        [halving, ["prefill", "decode"].map(|phase| format!("scan, halving, {phase}, tensor cores"))].concat();
    let others = ["scan, halving whole chunks, decode, tensor cores", "scan, prefill, tensor cores"];
    for family in halving.into_iter().chain(others.map(str::to_owned)) {
        for kv_type in KvType::ALL {
            let takes = kv_type.factor().is_some() || !family.contains("tensor cores");
            let ran = seen.rows.keys().any(|place| place.family == family && place.kv_type == kv_type.word());
            assert_eq!(ran, takes, "{family}, {}", kv_type.word());
        }
    }
    let gaps = seen.gaps(&KvType::ALL, &HEAD_DIMS);
    assert!(gaps.is_empty(), "never run: {gaps:?}");
    report("rounded", &seen);
}

#[test]
fn drawn_calls_in_whole_numbers_are_off_by_nothing() {
    let layers = [draw::layers(EXACT_LAYERS, true), draw::dense(true)].concat();
    report("exact", &check_all(&with_own_texts(layers), EXACT_CALLS));
}

/// Few enough for a tool that makes kernels a hundred times slower.
#[test]
fn a_few_calls_are_off_by_no_more_than_rounding_allows() {
    let layers: Vec<Drawn> = draw::chosen().into_iter().step_by(4).collect();
    let seen = check_all(&layers, 1);
    assert!(seen.rows.len() > 32, "{} kinds of kernels", seen.rows.len());
}

/// All kernels of the presets for the heads of SmolLM2, the dense ones aside, which are the same in all of them
/// (`families`): none is left that did not run.
#[test]
fn every_kernel_of_every_preset_is_run_and_checked() {
    let mut prunings: Vec<&LayerPruning> = Vec::new();
    for pipeline in registry::all() {
        for phases in (0..32).map(|layer| pipeline.layer(layer)) {
            let pruned = [&phases.prefill, &phases.decode].into_iter().filter_map(|phase| phase.pruned());
            for pruning in pruned {
                if !prunings.contains(&pruning) {
                    prunings.push(pruning);
                }
            }
        }
    }
    let mut drawn = draw::layers(1, false).swap_remove(0);
    for pruning in prunings {
        drawn.activation = Activation::Bf16;
        drawn.instructions = host().instructions();
        drawn.layer =
            Layer { heads: (9, 3, 64), kv_type: KvType::Bf16, page: 16, trained: 8192, pruning: pruning.clone() };
        let chunk = pruning.stages.first().map_or(0, |stage| stage.chunk);
        let first = (pruning.sink + pruning.window + 3 * chunk) as usize;
        let mut attention = drawn.attention_for(first + 32);
        // A step that renews everything, and one that reuses what there is: its attention may be another kernel.
        let restarts = if pruning.stages.is_empty() { vec![None] } else { vec![Some(0), None] };
        let asked = Asked { first, rows: 8, spare: 2, restarts, kind: Kind::Noise, seed: 1 };
        let checked = ask(&drawn, &mut attention, &asked, &mut Tally::default());
        checked.unwrap_or_else(|fault| panic!("{pruning:?}: {fault}"));
        assert!(attention.never_launched().is_empty(), "{:?} of {pruning:?}", attention.never_launched());
    }
}

/// What is drawn has every word of a layer, every type, every head that kernels are made for, and every ratio of heads.
#[test]
fn every_word_type_and_shape_is_drawn() {
    let layers = [layers(), layers_of_each()].concat();
    let mut wanted = BTreeSet::new();
    for word in [Place::Stage, Place::Attend, Place::Rope].iter().flat_map(|place| place.words()) {
        match word.takes {
            Takes::Mode(modes) => wanted.extend(modes.iter().map(|mode| format!("{} {mode}", word.name))),
            _ => wanted.extend([word.name.to_owned()]),
        }
    }
    wanted.extend(["query_block", "sink", "window", "stage", "attend", "rope"].map(str::to_owned));
    wanted.extend(["all", "kv_group", "each"].map(|ranking| format!("ranking {ranking}")));
    wanted.extend(KvType::ALL.map(|kv_type| format!("cache {}", kv_type.word())));
    wanted.extend(HEAD_DIMS.map(|head_dim| format!("head {head_dim}")));
    wanted.extend([1, 3, 4, 8].map(|ratio| format!("ratio {ratio}")));
    for Drawn { layer, .. } in &layers {
        let phases = layer.pruning.clone().into();
        let text = Pipeline::from_checked("Drawn".into(), "".into(), Refresh::Together, phases, [].as_slice().into());
        let text = text.to_string();
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        for pair in words.collect::<Vec<&str>>().windows(2) {
            wanted.remove(pair[0]);
            wanted.remove(&pair.join(" "));
        }
        let Layer { heads: (query_heads, kv_heads, head_dim), kv_type, .. } = layer;
        wanted.remove(&format!("cache {}", kv_type.word()));
        wanted.remove(&format!("head {head_dim}"));
        wanted.remove(&format!("ratio {}", query_heads / kv_heads));
    }
    assert!(wanted.is_empty(), "never drawn: {wanted:?}");
}

/// The table in the book is made of the rows that are committed.
#[test]
fn the_table_of_the_book_is_that_of_the_runs() {
    let device = |device| ["rounded", "exact"].map(|mode| Tally::committed(device, mode));
    page::assert_table(&table::markdown(&device("emulator"), &device("cuda")));
}
