//! Random problems as golden cases: what the authors' kernels are for the golden files, the reference is for these.

use ihip_dsl::reference::scan::NEVER_SCORED;
use ihip_dsl::reference::{self, BlockList, Decode, StageOutcome};
use ihip_dsl::{Scores, Stage};

use super::declaration::declare;
use super::golden::{Case, Kind};
use super::sample::{HEAD_DIM, Sample};
use super::tolerance;

/// A sample, computed by the reference.
pub struct Agreement {
    /// All queries in one call, and one after the other with masks that are renewed as the description says.
    pub cases: [Case; 2],
    /// Whether the reference came upon a near tie: another order of summation may then select other blocks and be
    /// right.
    pub near_tie: bool,
}

/// The cases that a sample makes.
#[must_use]
pub fn cases(sample: &Sample) -> Agreement {
    let scale = sample.problem().query_scale;
    let scaled = Sample { queries: sample.queries.iter().map(|q| q * scale).collect(), ..sample.clone() };

    let mut call = blank(&scaled, Kind::Call);
    let outcome = reference::prefill(&call.problem());
    let mut close = near_tie(&sample.pruning.stages, &outcome.stages);
    call.stage_inputs =
        outcome.stages.iter().map(|stage| Some(stage.input.iter().map(|l| integers(l)).collect())).collect();
    call.lists = outcome.lists.iter().map(counted).collect();
    call.strict = vec![true; call.lists.len() / call.problem().rankings()];
    call.out = outcome.out;

    let mut steps = blank(&scaled, Kind::Call);
    let mut restart = Vec::new();
    let mut decode = Decode::new();
    for row in 0..sample.query_count() {
        let step = decode.step(&steps.step(row));
        close |= near_tie(&sample.pruning.stages, &step.stages);
        restart.push(step.restart);
        steps.lists.extend(step.lists.iter().map(counted));
        steps.out.extend(step.out);
    }
    steps.strict = vec![true; sample.query_count()];
    steps.kind = Kind::Steps(restart);
    Agreement { cases: [call, steps], near_tie: close }
}

/// A sample as a case that expects nothing yet. Its queries are scaled already.
fn blank(sample: &Sample, kind: Kind) -> Case {
    Case {
        name: "sample".to_owned(),
        pipeline: declare("Sample", &sample.pruning),
        pruning: sample.pruning.clone(),
        query_heads: sample.query_heads,
        kv_heads: sample.kv_heads,
        head_dim: HEAD_DIM,
        frequencies: sample.frequencies.clone(),
        queries: sample.queries.clone(),
        keys: sample.keys.clone(),
        values: sample.values.clone(),
        trained: sample.trained,
        first_position: sample.first_position,
        kind,
        out: Vec::new(),
        stage_inputs: Vec::new(),
        lists: Vec::new(),
        strict: Vec::new(),
    }
}

/// Whether any descent or cut was decided by less than rounding may make of it; `stages` are the last of `declared`.
#[must_use]
pub fn near_tie(declared: &[Stage], stages: &[StageOutcome]) -> bool {
    let declared = &declared[declared.len() - stages.len()..];
    stages.iter().zip(declared).any(|(stage, declared)| {
        let near = tolerance::near_tie(declared.scoring.scores);
        stage.cuts.iter().zip(&stage.scores).any(|(cut, scores)| {
            let descended_closely =
                scores.closest.iter().any(|&difference| difference < tolerance::near_tie(Scores::Raw));
            // Chunks that were never scored tie as well, in the same order everywhere.
            let scored = scores.scores.iter().filter(|&&score| score > NEVER_SCORED).count();
            let cut_closely = scored > cut.kept.len() && cut.margin.is_some_and(|margin| margin < near);
            descended_closely || cut_closely
        })
    })
}

fn counted(list: &BlockList) -> Vec<i32> {
    integers(&list.blocks[..list.count])
}

fn integers(positions: &[usize]) -> Vec<i32> {
    positions.iter().map(|&position| position as i32).collect()
}
