//! What the stages select.

use std::collections::BTreeSet;

use ihip_dsl::reference::scan::{self, NEVER_SCORED};
use ihip_dsl::reference::{self, rope, select};
use ihip_dsl::words::{Place, Takes};
use ihip_dsl::{AttendRope, LayerPruning, Ranking, Refresh, Rope, ScanRope, Scoring, Stage, parse_str};
use ihip_tests::support::declaration::declare;
use ihip_tests::support::sample::{HEAD_DIM, Sample, Shape, pipelines, prunings, samples};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What the properties are tried on is what the language accepts.
    #[test]
    fn samples_can_be_declared(pruning in prunings()) {
        let pipeline = declare("Sample", &pruning);
        prop_assert_eq!(pipeline.base(), &pruning.clone().into());
    }

    /// And so are pipelines, with their phases and layers.
    #[test]
    fn sampled_pipelines_can_be_declared(pipeline in pipelines()) {
        let text = pipeline.to_string();
        let declared = parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
        prop_assert_eq!(declared, vec![pipeline], "as declared by\n{}", text);
    }

    /// Lists are ascending without repeats, lie between sinks and grid, and are as long as budget and chunks allow.
    #[test]
    fn lists_are_well_formed(sample in samples(250)) {
        let outcome = reference::prefill(&sample.problem());
        let pruning = &sample.pruning;
        let queries = sample.query_count();
        prop_assert_eq!(outcome.stages.len(), pruning.stages.len());
        let rankings = sample.problem().rankings();
        prop_assert_eq!(outcome.lists.len(), queries.div_ceil(pruning.query_block as usize) * rankings);
        prop_assert_eq!(outcome.out.len(), queries * sample.query_heads * HEAD_DIM);
        prop_assert!(outcome.out.iter().all(|x| x.is_finite()));
        for (stage, ran) in pruning.stages.iter().zip(&outcome.stages) {
            prop_assert_eq!(ran.input.len(), queries.div_ceil(stage.query_block as usize) * rankings);
            for chunks in &ran.input {
                prop_assert!(chunks.is_sorted_by(|a, b| a + stage.chunk as usize <= *b));
                prop_assert!(chunks.iter().all(|&start| start >= pruning.sink as usize));
            }
        }
        let Some((last, ran)) = pruning.stages.last().zip(outcome.stages.last()) else {
            return Ok(());
        };
        for (entry, list) in outcome.lists.iter().enumerate() {
            let budget = (pruning.keep / last.chunk) as usize;
            prop_assert_eq!(list.blocks.len(), budget.min(ran.input[entry].len()));
            prop_assert!(list.blocks.is_sorted_by(|a, b| a < b));
            let end = sample.first_position + (entry / rankings + 1) * pruning.query_block as usize;
            prop_assert!(list.blocks[..list.count].iter().all(|&start| start < end));
            prop_assert!(list.blocks[list.count..].iter().all(|&start| start >= end));
        }
    }

    /// A chunk is scored exactly if its first token has left the scan's window at the block's first query.
    #[test]
    fn what_is_scored_is_what_is_visible(sample in samples(250)) {
        let outcome = reference::prefill(&sample.problem());
        for (stage, ran) in sample.pruning.stages.iter().zip(&outcome.stages) {
            for (entry, (chunks, scores)) in ran.input.iter().zip(&ran.scores).enumerate() {
                let block = entry / sample.problem().rankings();
                let first = sample.first_position + block * stage.query_block as usize;
                for (&start, &score) in chunks.iter().zip(&scores.scores) {
                    let visible = start + scan::scan_window(&sample.pruning) <= first;
                    prop_assert_eq!(score > NEVER_SCORED, visible);
                }
            }
        }
    }

    /// No query misses a key between window and budget because of the block it shares a list with: where nothing is
    /// dropped, every key that has left the window is listed.
    #[test]
    fn nothing_falls_between_window_and_chunks(mut sample in samples(250)) {
        let pruning = &mut sample.pruning;
        let Some(first) = pruning.stages.first().copied() else {
            return Ok(());
        };
        // The rule of coverage (paper §3.1): the first chunk is at least the query block less one.
        let query_block = [8, 4, 2].into_iter().find(|block| first.chunk + 1 >= *block).unwrap_or(1);
        pruning.query_block = query_block;
        let stages = pruning.stages.to_mut();
        for stage in stages.iter_mut() {
            stage.query_block = query_block;
            stage.query_stride = stage.query_stride.min(query_block);
        }
        let keys = sample.t_max as u32;
        for stage in 1..stages.len() {
            stages[stage].keep = Some(keys.next_multiple_of(stages[stage - 1].chunk));
        }
        let block_tokens = stages.last().map_or(1, |last| last.chunk);
        pruning.keep = keys.next_multiple_of(block_tokens);

        let outcome = reference::prefill(&sample.problem());
        let ran = outcome.stages.last().expect("there is a stage");
        let rankings = sample.problem().rankings();
        for (row, ranking) in (0..sample.query_count()).flat_map(|row| (0..rankings).map(move |ranking| (row, ranking))) {
            let entry = row / sample.pruning.query_block as usize * rankings + ranking;
            let (chunks, scores) = (&ran.input[entry], &ran.scores[entry].scores);
            let scored: Vec<usize> = chunks.iter().zip(scores)
                .filter(|(_, score)| **score > NEVER_SCORED)
                .map(|(start, _)| *start)
                .collect();
            let outside = (sample.first_position + row + 1).saturating_sub(sample.pruning.window as usize);
            for token in sample.pruning.sink as usize..outside {
                let held = |start: &usize| (*start..start + block_tokens as usize).contains(&token);
                prop_assert!(scored.iter().any(held), "token {token} of row {row}");
            }
        }
    }

    /// A cut keeps the best, the lower position in a tie, and says how close it was.
    #[test]
    fn cuts_keep_the_best(scores in prop::collection::vec(-2_i8..3, 0..30), count in 0_usize..12) {
        let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
        let chunks: Vec<usize> = (0..scores.len()).map(|chunk| 10 + 4 * chunk).collect();
        let cut = select::cut(&chunks, &scores, count);
        prop_assert_eq!(cut.kept.len(), count.min(chunks.len()));
        let score = |chunk: usize| scores[(chunk - 10) / 4];
        let dropped: Vec<usize> = chunks.iter().copied().filter(|chunk| !cut.kept.contains(chunk)).collect();
        for &kept in &cut.kept {
            for &dropped in &dropped {
                let tie = score(kept) == score(dropped) && kept < dropped;
                prop_assert!(score(kept) > score(dropped) || tie);
            }
        }
        let worst_kept = cut.kept.iter().map(|&chunk| score(chunk)).reduce(f32::min);
        let best_dropped = dropped.iter().map(|&chunk| score(chunk)).reduce(f32::max);
        let margin = worst_kept.zip(best_dropped).map(|(kept, dropped)| kept - dropped);
        prop_assert_eq!(cut.margin, margin);
    }

    /// With chunks of one token and no averaging, a chunk's score is the largest product of any query and head.
    #[test]
    fn one_token_chunks_score_exactly(mut sample in samples(60)) {
        sample.pruning = LayerPruning {
            sink: 2,
            window: 5,
            query_block: 8,
            keep: 4,
            ranking: Ranking::All,
            stages: vec![Stage { keep: None, chunk: 1, query_block: 8, query_stride: 1, refresh: 1, scoring: Scoring::default(), rope: None }].into(),
            rope: Rope { scan: ScanRope::None, attend: AttendRope::Streaming },
        };
        let problem = sample.problem();
        let outcome = reference::prefill(&problem);
        let ran = &outcome.stages[0];
        for (block, (chunks, scores)) in ran.input.iter().zip(&ran.scores).enumerate() {
            let rows = block * 8..((block + 1) * 8).min(sample.query_count());
            for (&token, &score) in chunks.iter().zip(&scores.scores) {
                if score == NEVER_SCORED {
                    continue;
                }
                let mut best = f64::NEG_INFINITY;
                for row in rows.clone() {
                    for head in 0..sample.query_heads {
                        let kv_head = head * sample.kv_heads / sample.query_heads;
                        let query = &sample.queries[(row * sample.query_heads + head) * HEAD_DIM..][..HEAD_DIM];
                        let key = &sample.keys[(token * sample.kv_heads + kv_head) * HEAD_DIM..][..HEAD_DIM];
                        let product: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        best = best.max(product * f64::from(problem.query_scale));
                    }
                }
                prop_assert!((f64::from(score) - best).abs() < 1e-5);
            }
        }
    }

    /// Keys that point where the queries do are found, wherever they lie.
    #[test]
    fn a_needle_is_found(seed: u64, place in 0.0..1.0_f64, mode in 0..3_usize) {
        let scan = [ScanRope::Relative, ScanRope::Infllm, ScanRope::None][mode];
        let pruning = three_stages(Rope { scan, attend: AttendRope::Streaming });
        let shape = Shape { kv_heads: 2, group: 2, first_position: 500, queries: 8, seed };
        let mut sample = Sample::new(pruning, shape);
        let chunks = scan::first_chunks(&sample.pruning, sample.t_max);
        let visible = chunks.iter().filter(|&&start| start + scan::scan_window(&sample.pruning) <= 500).count();
        let needle = chunks[(place * visible as f64) as usize];

        // All queries of the second key-value head's group are one direction, and so are the needle's keys, turned to
        // where the scan meets them.
        let direction: Vec<f64> = (0..HEAD_DIM).map(|i| if i % 3 == 0 { 2.0 } else { -1.0 }).collect();
        for row in 0..8 {
            for head in 2..4 {
                let query = &mut sample.queries[(row * 4 + head) * HEAD_DIM..][..HEAD_DIM];
                query.iter_mut().zip(&direction).for_each(|(q, x)| *q = *x as f32);
            }
        }
        let turned = match scan {
            ScanRope::None => direction.clone(),
            _ => rope::rotate(&direction, scan::scan_window(&sample.pruning), &sample.frequencies),
        };
        for token in needle..needle + 16 {
            let key = &mut sample.keys[(token * 2 + 1) * HEAD_DIM..][..HEAD_DIM];
            key.iter_mut().zip(&turned).for_each(|(k, x)| *k = 4.0 * *x as f32);
        }

        let outcome = reference::prefill(&sample.problem());
        for start in (needle..needle + 16).step_by(4) {
            prop_assert!(outcome.lists[0].blocks.contains(&start), "{start} of {needle} in {:?}", outcome.lists[0]);
        }
    }
}

/// Whatever is compared over samples is compared in every word that the grammar has, in every place where it stands.
#[test]
fn every_word_is_drawn() {
    const PIPELINES: usize = 400;
    let places =
        [Place::Pipeline, Place::Layers, Place::Prefill, Place::Decode, Place::Stage, Place::Attend, Place::Rope];
    let mut wanted = BTreeSet::new();
    for word in places.iter().flat_map(|place| place.words()) {
        match word.takes {
            Takes::Mode(modes) => wanted.extend(modes.iter().map(|mode| format!("{} {mode}", word.name))),
            _ => wanted.extend([word.name.to_owned()]),
        }
    }
    let mut runner = TestRunner::deterministic();
    for _ in 0..PIPELINES {
        let pipeline = pipelines().new_tree(&mut runner).expect("nothing is rejected").current();
        if pipeline.refresh() == Refresh::Together {
            // The one choice that stays unwritten where it is made.
            wanted.remove("refresh together");
        }
        let text = pipeline.to_string();
        let words: Vec<&str> =
            text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            wanted.remove(pair[0]);
            wanted.remove(&pair.join(" "));
        }
    }
    assert!(wanted.is_empty(), "never drawn: {wanted:?}");
}

/// Chunks of 16, 8 and 4; query blocks of 8.
fn three_stages(rope: Rope) -> LayerPruning {
    let stage = |keep, chunk, query_stride| Stage {
        keep,
        chunk,
        query_block: 8,
        query_stride,
        refresh: 1,
        scoring: Scoring::default(),
        rope: None,
    };
    LayerPruning {
        sink: 4,
        window: 40,
        query_block: 8,
        keep: 32,
        ranking: Ranking::All,
        stages: vec![stage(None, 16, 4), stage(Some(96), 8, 2), stage(Some(64), 4, 1)].into(),
        rope,
    }
}

/// Lists are repeated and the last ones taken: with a ragged end, a block may start from a later one's list.
#[test]
fn shrinking_query_blocks_take_the_last_lists() {
    let parents = |children, parents, ratio| -> Vec<usize> {
        (0..children).map(|child| select::parent(child, children, parents, ratio)).collect()
    };
    assert_eq!(parents(4, 2, 2), [0, 0, 1, 1]);
    assert_eq!(parents(3, 2, 2), [0, 1, 1]);
    assert_eq!(parents(5, 2, 4), [0, 1, 1, 1, 1]);
    assert_eq!(parents(3, 3, 1), [0, 1, 2]);
}
