//! One tiny problem, written out.

use std::fmt::Write as _;

use ihip_dsl::reference;
use ihip_dsl::reference::scan::NEVER_SCORED;
use ihip_dsl::{AttendRope, LayerPruning, Ranking, Rope, ScanRope, Scoring, Stage};
use ihip_tests::support::sample::{Sample, Shape};

/// The chunks that enter each stage with their scores, what each cut keeps, and the lists.
fn written(outcome: &reference::Outcome) -> String {
    let mut text = String::new();
    for (number, stage) in outcome.stages.iter().enumerate() {
        for (block, (chunks, scores)) in stage.input.iter().zip(&stage.scores).enumerate() {
            write!(text, "stage {number}, query block {block}:").expect("a string takes it");
            for (chunk, &score) in chunks.iter().zip(&scores.scores) {
                let kept = if stage.cuts[block].kept.contains(chunk) { "+" } else { "" };
                if score == NEVER_SCORED {
                    write!(text, " {kept}{chunk}=never").expect("a string takes it");
                } else {
                    write!(text, " {kept}{chunk}={score:.2}").expect("a string takes it");
                }
            }
            text.push('\n');
        }
    }
    for (block, list) in outcome.lists.iter().enumerate() {
        let (counted, beyond) = list.blocks.split_at(list.count);
        writeln!(text, "query block {block} attends to {counted:?}, not yet to {beyond:?}").expect("a string takes it");
    }
    text
}

#[test]
fn two_stages_over_forty_keys() {
    let stage = |keep, chunk, query_block, query_stride| Stage {
        keep,
        chunk,
        query_block,
        query_stride,
        refresh: 1,
        scoring: Scoring::default(),
        rope: None,
    };
    let pruning = LayerPruning {
        sink: 2,
        window: 7,
        query_block: 8,
        keep: 12,
        stages: vec![stage(None, 4, 16, 4), stage(Some(16), 2, 8, 1)].into(),
        ranking: Ranking::All,
        rope: Rope { scan: ScanRope::Relative, attend: AttendRope::Streaming },
    };
    let shape = Shape { kv_heads: 1, group: 2, first_position: 0, queries: 40, seed: 7 };
    let sample = Sample::new(pruning, shape);
    let outcome = reference::prefill(&sample.problem());
    // The ragged end (40 queries in blocks of 16) gives query block 2 of stage 1 the list of block 1, and 3 that of 2.
    insta::assert_snapshot!(written(&outcome), @"
    stage 0, query block 0: +2=never +6=never +10=never +14=never 18=never 22=never 26=never 30=never
    stage 0, query block 1: +2=0.63 +6=0.74 +10=1.24 +14=never 18=never 22=never 26=never 30=never
    stage 0, query block 2: 2=0.75 6=0.73 +10=1.25 14=0.46 +18=1.48 +22=0.95 +26=1.00 30=never
    stage 1, query block 0: +2=never +4=never +6=never +8=never +10=never +12=never 14=never 16=never
    stage 1, query block 1: +2=1.85 +4=1.26 +6=never +8=never +10=never +12=never 14=never 16=never
    stage 1, query block 2: +2=1.52 +4=1.20 +6=2.29 +8=1.59 +10=1.81 +12=3.91 14=never 16=never
    stage 1, query block 3: +10=2.94 +12=2.91 +18=1.96 +20=1.88 +22=never +24=never 26=never 28=never
    stage 1, query block 4: +10=2.48 +12=2.16 +18=2.39 +20=2.69 22=1.39 +24=1.85 +26=2.08 28=1.35
    query block 0 attends to [2, 4, 6], not yet to [8, 10, 12]
    query block 1 attends to [2, 4, 6, 8, 10, 12], not yet to []
    query block 2 attends to [2, 4, 6, 8, 10, 12], not yet to []
    query block 3 attends to [10, 12, 18, 20, 22, 24], not yet to []
    query block 4 attends to [10, 12, 18, 20, 24, 26], not yet to []
    ");
}
