//! The CPU device computes what the reference says.

use ihip_dsl::reference::{self, BlockList, Decode, Problem};
use ihip_dsl::{Plan, PrunedLayer};
use ihip_runtime::Session;
use ihip_runtime::session::Phase;
use ihip_tests::support::agreement::near_tie;
use ihip_tests::support::golden::Answer;
use ihip_tests::support::layer::{self, Layer};
use ihip_tests::support::sample::samples;
use ihip_tests::support::tolerance;
use proptest::prelude::*;

/// Fails where lists or outputs differ; lists may where a decision was close, and outputs of other lists are others.
fn compare(answer: &Answer, lists: &[BlockList], close: bool, out: &[f32]) -> Result<bool, TestCaseError> {
    let expected: Vec<Vec<i32>> =
        lists.iter().map(|list| list.blocks[..list.count].iter().map(|block| *block as i32).collect()).collect();
    if answer.lists != expected {
        prop_assert!(close, "lists {:?} where {expected:?} are expected", answer.lists);
        return Ok(false);
    }
    prop_assert_eq!(answer.out.len(), out.len());
    for (index, (got, expected)) in answer.out.iter().zip(out).enumerate() {
        prop_assert!((got - expected).abs() <= tolerance::SUM, "output {index} is {got}, not {expected}");
    }
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn prefill_is_the_references(sample in samples(400), beyond in 0_usize..200) {
        let problem = Problem { t_max: sample.t_max + beyond, ..sample.problem() };
        let expected = reference::prefill(&problem);
        let mut layer = Layer::new(&layer::plan(&problem), sample.t_max, 2);
        let answer = layer.call(&problem, Phase::Prefill);
        let close = near_tie(&problem.pruning.stages, &expected.stages);
        compare(&answer, &expected.lists, close, &expected.out)?;
    }

    #[test]
    fn decoding_steps_are_the_references(sample in samples(300)) {
        let plan = layer::plan(&sample.problem());
        let mut layer = Layer::new(&plan, sample.t_max, 2);
        let mut session = Session::new(plan);
        let mut decode = Decode::new();
        let mut close = false;
        for row in 0..sample.query_count() {
            let problem = sample.step(row);
            let expected = decode.step(&problem);
            // The session counts from position 0, the sample's queries come later.
            let decoding = session.decode_step();
            session.advance(&decoding);
            if let Phase::Decode { renewals } = &decoding.phase {
                prop_assert_eq!(renewals, &vec![expected.restart.into()]);
            }
            let answer = layer.call(&problem, decoding.phase);
            close |= near_tie(&problem.pruning.stages, &expected.stages);
            if !compare(&answer, &expected.lists, close, &expected.out)? {
                // Later steps build on lists that are others now.
                break;
            }
        }
    }

    #[test]
    fn dense_layers_are_the_references(sample in samples(300)) {
        let problem = sample.problem();
        let plan = Plan::dense(layer::geometry(&problem), sample.frequencies.clone(), 1);
        let answer = Layer::new(&plan.into(), sample.t_max, 2).call(&problem, Phase::Prefill);
        compare(&answer, &[], false, &reference::dense(&problem))?;
    }

    #[test]
    fn lists_have_as_many_entries_as_the_plan_counts(sample in samples(400), beyond in 0_usize..200) {
        let problem = Problem { t_max: sample.t_max + beyond, ..sample.problem() };
        let outcome = reference::prefill(&problem);
        let layer = PrunedLayer::new(problem.pruning);
        for (index, stage) in outcome.stages.iter().enumerate() {
            for input in &stage.input {
                prop_assert_eq!(input.len(), layer.chunks(index, problem.t_max));
            }
        }
        for list in &outcome.lists {
            prop_assert_eq!(list.blocks.len(), layer.blocks(problem.t_max));
        }
    }
}
