//! All families in a row: block lists equal to the reference's, and outputs with them.

use ihip_dsl::Plan;
use ihip_dsl::reference::{self, Decode, StageOutcome};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::tolerance::undecided as near;
use proptest::prelude::*;

use super::attend::tolerance;
use super::{Data, Layer, all_layers, call, check, difference, sampled_layers};

/// Whether rounding may have decided a descent or a cut: then lists may differ, and what follows from them.
fn undecided(layer: &Layer, stages: &[StageOutcome]) -> bool {
    let near = near(layer.kv_type, layer.pruning.rope.rotated_cache());
    stages.iter().any(|stage| {
        let cut = stage.cuts.iter().any(|cut| cut.margin.is_some_and(|margin| margin > 0.0 && margin < near));
        cut || stage.scores.iter().any(|scores| scores.closest.iter().any(|&closest| closest < near))
    })
}

/// A prefill call.
pub(super) fn prefill(
    layer: &Layer,
    attention: &mut Attention,
    ((first, rows, spare), seed): ((usize, usize, usize), u64),
) -> Result<(), TestCaseError> {
    let data = Data::new(layer, first, rows, seed);
    let qkv = data.cache(layer, attention);
    let t_max = first + rows + spare;
    let frequencies = layer.frequencies();
    let expected = reference::prefill(&data.problem(layer, &frequencies, t_max));
    let (out, masks) = attention.prefill(first, t_max, &qkv);
    prop_assert!(attention.scores_are_zero(), "scores are left behind");
    if undecided(layer, &expected.stages) {
        return Err(TestCaseError::reject("rounding decides"));
    }
    if !layer.pruning.stages.is_empty() {
        let lists = expected.lists.iter().map(|list| list.blocks[..list.count].iter().map(|&b| b as i32).collect());
        prop_assert_eq!(lists.collect::<Vec<Vec<i32>>>(), masks.lists);
    }
    let difference = difference(&expected.out, &out);
    prop_assert!(difference < tolerance(layer), "outputs differ by {}", difference);
    Ok(())
}

/// Decoding steps from `position` on.
pub(super) fn decoding(
    layer: &Layer,
    attention: &mut Attention,
    (position, seed): (usize, u64),
) -> Result<(), TestCaseError> {
    let mut layer = layer.clone();
    // Every stage has an interval of its own, the first the longest.
    let stages = layer.pruning.stages.to_mut();
    let count = stages.len() as u32;
    for (index, stage) in stages.iter_mut().enumerate() {
        stage.refresh = 1 << (count - index as u32);
    }
    decoding_by(&layer, attention, (position, seed), 5, &layer.plan())
}

/// So many decoding steps, which renew what `plan` says.
pub(super) fn decoding_by(
    layer: &Layer,
    attention: &mut Attention,
    (position, seed): (usize, u64),
    steps: usize,
    plan: &Plan,
) -> Result<(), TestCaseError> {
    let data = Data::new(layer, position, steps, seed);
    let qkv = data.cache(layer, attention);
    let qkv: Vec<&[f32]> = qkv.chunks(qkv.len() / steps).collect();
    let frequencies = layer.frequencies();
    let (query, key) = (layer.query_row(), layer.key_row());
    let mut decode = Decode::new();
    for (step, qkv) in qkv.iter().enumerate() {
        let end = position + step + 1;
        let mut one = data.clone();
        one.first = position + step;
        one.queries = data.queries[step * query..][..query].to_vec();
        one.keys.truncate(end * key);
        one.values.truncate(end * key);
        let renewal = plan.renewal(0, step);
        let expected = decode.renew(&one.problem(layer, &frequencies, end), renewal);
        if undecided(layer, &expected.stages) {
            return Err(TestCaseError::reject("rounding decides"));
        }
        let (out, lists) = attention.decode(one.first, end, renewal, qkv);
        let counted = expected.lists.iter().map(|list| list.blocks[..list.count].iter().map(|&b| b as i32).collect());
        prop_assert_eq!(counted.collect::<Vec<Vec<i32>>>(), lists, "step {}", step);
        let difference = difference(&expected.out, &out);
        prop_assert!(difference < tolerance(layer), "step {}: outputs differ by {}", step, difference);
    }
    Ok(())
}

#[test]
fn prefill_is_the_references() {
    check(&all_layers(), 4, &(call(), any::<u64>()), prefill);
}

#[test]
fn decoding_with_renewed_and_reused_masks_is_the_references() {
    check(&all_layers(), 2, &(60..500_usize, any::<u64>()), decoding);
}

#[test]
fn prefill_of_sampled_pipelines_is_the_references() {
    check(&sampled_layers(), 6, &(call(), any::<u64>()), prefill);
}

#[test]
fn decoding_of_sampled_pipelines_is_the_references() {
    check(&sampled_layers(), 4, &(60..500_usize, any::<u64>()), decoding);
}
