//! The CPU device, through the trait that models use.

use ihip_runtime::session::Phase;
use ihip_runtime::{Session, Step};
use ihip_tests::support::golden::{self, Answer, Case, Engine, Kind};
use ihip_tests::support::layer::{self, Layer};

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
                if let (Kind::Steps(expected), Phase::Decode { restart }) = (&case.kind, &step.phase) {
                    assert_eq!(restart[0], expected[number], "{}: step {number}", case.name);
                }
                session.advance(&step);
                layer.call(&case.step(number), step.phase)
            })
            .collect()
    }
}

#[test]
fn every_case() {
    golden::check_all(&mut Cpu);
}
