//! Keys and values in two tiers: wherever pages lie and however they move, every result is the same.

use std::sync::Arc;

use ihip_dsl::{LayerPruning, Plan, parse_str};
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::kv::{Budget, Kind, KvError, Placement, Row, Tokens};
use ihip_runtime::{Error, Session};
use ihip_tests::support::failing::{Failing, TIERS};
use ihip_tests::support::golden::Answer;
use ihip_tests::support::layer::Layer;

use super::invariance::{HEAD_DIM, KV_HEADS, PIPELINES, TOKENS, Tensors, bits};

/// Tokens of the prompt, and of a step of it.
const PROMPT: usize = 900;
const CHUNK: usize = 64;
/// Bytes of a page of keys, or of values.
const PAGE: u64 = (16 * KV_HEADS * HEAD_DIM * size_of::<f32>()) as u64;
/// What a layer cannot do without on the GPU: of keys and of values, pages of a step's tokens and two more.
const LEAST: u64 = 2 * (CHUNK as u64 / 16 + 2) * PAGE;
/// All keys and values.
const ALL: u64 = 2 * (TOKENS as u64).div_ceil(16) * PAGE;

fn device(gpu: u64) -> CpuDevice {
    let mut device = CpuDevice::new(2).expect("two threads");
    device.limit_kv(Budget { gpu, host: ALL }, CHUNK);
    device
}

fn within(plan: &Arc<Plan>, gpu: u64) -> Layer {
    Layer::on(device(gpu), plan, TOKENS).expect("the budget holds it")
}

/// Every pipeline with its name, and one that prunes nothing.
fn plans(tensors: &Tensors) -> Vec<(String, LayerPruning, Arc<Plan>)> {
    let pipelines = parse_str(PIPELINES).expect("valid pipelines");
    let pruning = |pipeline: usize| pipelines[pipeline].base().prefill.pruned().expect("it prunes").clone();
    let pruned = (0..pipelines.len()).map(|pipeline| {
        let pruning = pruning(pipeline);
        let plan = tensors.plan(&pruning, false);
        (pipelines[pipeline].name().to_owned(), pruning, plan)
    });
    let dense = ("dense".to_owned(), pruning(0), tensors.plan(&pruning(0), true));
    pruned.chain([dense]).collect()
}

fn assert_same(found: &Answer, expected: &Answer, what: &str) {
    assert_eq!(found.lists, expected.lists, "lists of {what}");
    assert!(bits(&found.out) == bits(&expected.out), "outputs of {what}");
}

#[test]
fn offloaded_is_resident_bit_for_bit() {
    let tensors = Tensors::new();
    for (name, pruning, plan) in plans(&tensors) {
        let mut resident = Layer::new(&plan, TOKENS, 2);
        let expected = tensors.run_in(&mut resident, &pruning, plan.clone(), PROMPT, CHUNK);
        let traffic = resident.traffic();
        assert_eq!((traffic.reads().misses, traffic.evictions, traffic.promotions), (0, 0, 0), "{name}");
        for gpu in [ALL, ALL / 2, LEAST] {
            let mut layer = within(&plan, gpu);
            let found = tensors.run_in(&mut layer, &pruning, plan.clone(), PROMPT, CHUNK);
            assert_same(&found, &expected, &format!("{name} with {gpu} bytes on the GPU"));
            let traffic = layer.traffic();
            let moved = traffic.reads().misses.min(traffic.evictions).min(traffic.promotions);
            assert_eq!(moved > 0, gpu < ALL, "{name} with {gpu} bytes on the GPU: {traffic:?}");
            assert_eq!(traffic.evicted_bytes, traffic.evictions * PAGE);
        }
    }
}

#[test]
fn a_wrong_page_is_found() {
    let tensors = Tensors::new();
    for (name, pruning, plan) in plans(&tensors) {
        let expected = tensors.run_in(&mut within(&plan, LEAST), &pruning, plan.clone(), PROMPT, CHUNK);
        let mut layer = within(&plan, LEAST);
        let mut session = Session::new(plan.clone());
        let first = session.prefill_steps(CHUNK, CHUNK).expect("a valid chunk").remove(0);
        session.advance(&first);
        layer.call(&tensors.problem(&pruning, 0, CHUNK, first.t_max), first.phase);
        layer.cache_mut().spoil(Row { layer: 0, kind: Kind::Values, head: 1, token: 3 });
        let mut out = Vec::new();
        for step in session.prefill_steps(PROMPT - CHUNK, CHUNK).expect("a valid chunk") {
            out.extend(layer.call(&tensors.problem(&pruning, step.start, step.rows, step.t_max), step.phase).out);
        }
        let width = expected.out.len() / TOKENS;
        assert!(bits(&out) != bits(&expected.out[CHUNK * width..PROMPT * width]), "{name}: a sink's value was spoilt");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let tensors = Tensors::new();
    let (_, _, plan) = plans(&tensors).remove(0);
    let mut device = CpuDevice::new(1).expect("a thread");
    device.limit_kv(Budget { gpu: LEAST, host: 20 * PAGE }, CHUNK);
    let error = device.cache(&plan, TOKENS).expect_err("16 pages fit");
    assert_eq!(
        error.to_string(),
        "1300 tokens do not fit: 147456 bytes on the GPU and 245760 on the host hold 240 (1536 bytes a token); \
         shorten the prompt or raise a budget"
    );
    assert!(device.cache(&plan, 240).is_ok());
    let tokens = Tokens { gpu: 96, host: 160 };
    assert_eq!(
        device.placement(&plan, 240).expect("it fits"),
        Placement { keys: tokens, values: tokens, ..Placement::default() }
    );
}

#[test]
fn whichever_allocation_fails_bytes_come_back_and_the_next_request_is_right() {
    let tensors = Tensors::new();
    let (name, pruning, plan) = plans(&tensors).remove(0);
    let expected = tensors.run_in(&mut Layer::new(&plan, TOKENS, 2), &pruning, plan.clone(), PROMPT, CHUNK);
    for tier in TIERS {
        // Keys, then values, of the one layer.
        for which in 1..=2 {
            let failing = Arc::new(Failing::at(tier, which));
            let request = || {
                let mut device = device(LEAST);
                device.allocate_from(failing.clone());
                Layer::on(device, &plan, TOKENS)
            };
            let Err(error) = request() else { panic!("allocation {which} on the {tier} failed unnoticed") };
            assert!(matches!(error, Error::Kv(KvError::Allocation { tier: named, .. }) if named == tier), "{error}");
            assert_eq!(failing.held(), [0, 0], "after allocation {which} on the {tier} failed");

            let mut next = request().expect("an allocation fails once");
            let found = tensors.run_in(&mut next, &pruning, plan.clone(), PROMPT, CHUNK);
            assert_same(&found, &expected, &format!("{name} after allocation {which} on the {tier} failed"));
            drop(next);
            assert_eq!(failing.held(), [0, 0]);
            assert_eq!(failing.asked(tier), which + 2, "a run allocates when it begins and never after");
        }
    }
}

#[test]
fn a_request_that_is_cancelled_while_pages_move_gives_everything_back() {
    let tensors = Tensors::new();
    let (name, pruning, plan) = plans(&tensors).remove(0);
    let expected = tensors.run_in(&mut Layer::new(&plan, TOKENS, 2), &pruning, plan.clone(), PROMPT, CHUNK);
    let counting = Arc::new(Failing::default());
    let request = || {
        let mut device = device(ALL / 2);
        device.allocate_from(counting.clone());
        Layer::on(device, &plan, TOKENS).expect("the budget holds it")
    };
    let mut cancelled = 0;
    for steps in 1..=4 {
        let mut layer = request();
        let mut session = Session::new(plan.clone());
        let mut prefill = session.prefill_steps(PROMPT, CHUNK).expect("a valid chunk").into_iter();
        while session.decoded() < steps {
            let step = prefill.next().unwrap_or_else(|| session.decode_step());
            session.advance(&step);
            layer.call(&tensors.problem(&pruning, step.start, step.rows, step.t_max), step.phase);
        }
        cancelled += usize::from(layer.cache_mut().moving() > 0);
        drop(layer);
        assert_eq!(counting.held(), [0, 0], "after {steps} decoding steps");
    }
    assert!(cancelled > 0, "no request was cancelled while pages moved");
    let found = tensors.run_in(&mut request(), &pruning, plan.clone(), PROMPT, CHUNK);
    assert_same(&found, &expected, &format!("{name} after {cancelled} cancelled requests"));
}
