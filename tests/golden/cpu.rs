//! The CPU device, through the trait that models use.

use ihip_dsl::Pruning;
use ihip_model::presets::Paper3k;
use ihip_runtime::session::Phase;
use ihip_runtime::{Session, Step};
use ihip_tests::support::agreement;
use ihip_tests::support::golden::{self, Answer, Case, Engine, Kind};
use ihip_tests::support::layer::{self, Layer};
use ihip_tests::support::sample::{Sample, Shape, samples};
use proptest::prelude::*;

struct Cpu;

impl Engine for Cpu {
    fn call(&mut self, case: &Case) -> Answer {
        let problem = case.problem();
        Layer::new(&layer::plan(&problem), case.key_count(), 2).call(&problem, Phase::Prefill)
    }

    fn steps(&mut self, case: &Case) -> Vec<Answer> {
        let plan = layer::plan(&case.problem());
        let mut layer = Layer::new(&plan, case.key_count(), 2);
        let mut session = Session::new(plan);
        session.advance(&Step { start: 0, rows: case.first_position, t_max: 0, phase: Phase::Prefill });
        (0..case.query_count())
            .map(|number| {
                let step = session.decode_step();
                if let (Kind::Steps(expected), Phase::Decode { renewals }) = (&case.kind, &step.phase) {
                    assert_eq!(renewals[0].restart, expected[number], "{}: step {number}", case.name);
                }
                session.advance(&step);
                layer.call(&case.step(number), step.phase)
            })
            .collect()
    }
}

#[test]
fn every_case_is_reproduced() {
    golden::check_all(&mut Cpu);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// A prefill call and decoding steps of each.
    #[test]
    fn any_description_runs_as_in_the_reference(sample in samples(300)) {
        let agreement = agreement::cases(&sample);
        prop_assume!(!agreement.near_tie);
        let mut cpu = Cpu;
        for case in &agreement.cases {
            let problems = case.check(&mut cpu);
            prop_assert!(problems.is_empty(), "{}", problems.join("\n"));
        }
    }
}

/// The paper's own sizes, over more keys than the budget of its last cut.
#[test]
fn the_published_setting_runs_as_in_the_reference() {
    let mut cpu = Cpu;
    let pipeline = Paper3k::pipeline();
    for layer in [0, 3] {
        let shape = Shape { kv_heads: 1, group: 3, first_position: 6_000, queries: 72, seed: 3 };
        let sample = Sample::new(pipeline.layer(layer).prefill.pruned().expect("nothing is dense").clone(), shape);
        let problems: Vec<String> =
            agreement::cases(&sample).cases.iter().flat_map(|case| case.check(&mut cpu)).collect();
        assert!(problems.is_empty(), "layer {layer}: {}", problems.join("\n"));
    }
}
