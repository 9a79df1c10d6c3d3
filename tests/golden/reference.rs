//! The reference, stage inputs included.

use ihip_dsl::reference::{self, BlockList, Decode};
use ihip_tests::support::golden::{self, Answer, Case, Engine, Kind};

struct Reference;

impl Engine for Reference {
    fn call(&mut self, case: &Case) -> Answer {
        let outcome = reference::prefill(&case.problem());
        let inputs = outcome.stages.into_iter().map(|stage| stage.input);
        Answer {
            stage_inputs: inputs.map(|lists| lists.iter().map(|list| integers(list)).collect()).collect(),
            lists: outcome.lists.iter().map(counted).collect(),
            out: outcome.out,
        }
    }

    fn steps(&mut self, case: &Case) -> Vec<Answer> {
        let mut decode = Decode::new();
        (0..case.query_count())
            .map(|number| {
                let step = decode.step(&case.step(number));
                if let Kind::Steps(restart) = &case.kind {
                    assert_eq!(step.restart, restart[number], "{}: step {number}", case.name);
                }
                Answer { stage_inputs: Vec::new(), lists: step.lists.iter().map(counted).collect(), out: step.out }
            })
            .collect()
    }
}

fn counted(list: &BlockList) -> Vec<i32> {
    integers(&list.blocks[..list.count])
}

fn integers(positions: &[usize]) -> Vec<i32> {
    positions.iter().map(|&position| position as i32).collect()
}

#[test]
fn every_case_is_reproduced() {
    golden::check_all(&mut Reference);
}
