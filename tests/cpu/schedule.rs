//! Which steps a request is cut into, and from which stage each renews its masks.

use std::collections::BTreeSet;
use std::sync::Arc;

use ihip_dsl::{Geometry, KvType, Pipeline, Plan, parse_str};
use ihip_runtime::session::{LONGEST_STEP, Phase, SEGMENT};
use ihip_runtime::{Session, Step};
use proptest::prelude::*;

const PIPELINES: &str = "
    pub Uniform {
        sink 256; window 1024;
        stage { chunk 256, query_stride 4, refresh 16 }
        stage { keep 32768, chunk 32, query_stride 4, refresh 8 }
        stage { keep 8192, chunk 8, query_stride 1, refresh 4 }
        attend { keep 2048 }
        rope { scan relative, attend streaming }
    }
    pub Shrinking {
        sink 256; window 1024;
        stage { chunk 256, query_block 64, query_stride 4, refresh 6 }
        stage { keep 32768, chunk 32, query_block 32, query_stride 4, refresh 3 }
        attend { keep 2048 }
        rope { scan relative, attend streaming }
    }
    pub NoStages { sink 256; window 1024; rope { attend streaming } }
";

fn pipelines() -> Vec<Pipeline> {
    parse_str(PIPELINES).expect("valid pipelines")
}

fn session(pipeline: &Pipeline) -> Session {
    let geometry = Geometry {
        query_heads: 1,
        kv_heads: 1,
        head_dim: 8,
        kv_type: KvType::F32,
        page: 16,
        query_scale: 1.0,
        trained: 8192,
    };
    Session::new(Arc::new(Plan::new(pipeline, geometry, vec![1.0; 4], 1).expect("no overrides")))
}

#[test]
fn masks_are_renewed_by_the_declared_intervals() {
    let mut text = String::new();
    for pipeline in pipelines() {
        let mut session = session(&pipeline);
        session.advance(&Step { start: 0, rows: 100, t_max: SEGMENT, phase: Phase::Prefill });
        let schedule = (0..40).map(|_| {
            let step = session.decode_step();
            session.advance(&step);
            match step.graph_key().expect("a decoding step")[0].restart {
                Some(stage) => stage.to_string(),
                None => ".".to_owned(),
            }
        });
        let schedule: String = schedule.collect();
        text += &format!("{:<10}{schedule}\n", pipeline.name());
        assert_eq!((session.decoded(), session.length()), (40, 140));
    }
    insta::assert_snapshot!(text, @r"
    Uniform   0...2...1...2...0...2...1...2...0...2...
    Shrinking 0..1..0..1..0..1..0..1..0..1..0..1..0..1
    NoStages  ........................................
    ");
}

#[test]
fn the_counter_belongs_to_the_request() {
    let pipelines = pipelines();
    let mut first = session(&pipelines[0]);
    for _ in 0..3 {
        let step = first.decode_step();
        first.advance(&step);
    }
    let second = session(&pipelines[0]);
    assert_eq!(first.decode_step().graph_key(), Some(&[None.into()][..]));
    assert_eq!(second.decode_step().graph_key(), Some(&[Some(0).into()][..]));
}

#[test]
fn a_remainder_of_a_query_block_is_a_step_of_its_own_where_blocks_shrink() {
    let ranges = |name: &str| -> Vec<(usize, usize)> {
        let pipelines = pipelines();
        let pipeline = pipelines.iter().find(|pipeline| pipeline.name() == name).expect("a pipeline of this name");
        let steps = session(pipeline).prefill_steps(1100, 512).expect("a valid chunk");
        steps.iter().map(|step| (step.start, step.rows)).collect()
    };
    assert_eq!(ranges("Uniform"), [(0, 512), (512, 512), (1024, 76)]);
    assert_eq!(ranges("Shrinking"), [(0, 512), (512, 512), (1024, 64), (1088, 12)]);
}

#[test]
fn a_chunk_that_masks_would_depend_on_is_refused() {
    let uniform = session(&pipelines()[0]);
    let segments = format!("or a multiple of {SEGMENT} up to {LONGEST_STEP}");
    for chunk in [0, 32, 96, 192, 100, 12_288, LONGEST_STEP + SEGMENT] {
        let error = uniform.prefill_steps(10, chunk).expect_err("no chunk that will do");
        let text = format!(
            "a prefill chunk of {chunk} tokens does not do: take a multiple of 64 that divides {SEGMENT}, {segments}"
        );
        assert_eq!(error.to_string(), text);
    }
    let wide = session(&blocks_of(256));
    let error = wide.prefill_steps(10, 128).expect_err("half a query block");
    assert_eq!(
        error.to_string(),
        format!("a prefill chunk of 128 tokens does not do: take a multiple of 256 that divides {SEGMENT}, {segments}")
    );
    assert_eq!(wide.prefill_steps(300, 256).expect("a query block").len(), 2);
}

#[test]
fn a_step_of_several_segments_has_the_calls_of_shorter_ones() {
    let calls = |steps: Vec<Step>| -> Vec<Step> { steps.iter().flat_map(Step::calls).collect() };
    for pipeline in pipelines() {
        for (before, tokens) in [(0, 3 * SEGMENT), (0, 70_001), (100, 40_000), (SEGMENT - 1, 2)] {
            let mut session = session(&pipeline);
            session.advance(&Step { start: 0, rows: before, t_max: SEGMENT, phase: Phase::Prefill });
            let steps = |chunk| session.prefill_steps(tokens, chunk).expect("a valid chunk");
            let expected = steps(SEGMENT);
            assert_eq!(calls(expected.clone()), expected, "each is one call");
            for chunk in [2 * SEGMENT, 4 * SEGMENT, LONGEST_STEP] {
                let longer = steps(chunk);
                assert_eq!(calls(longer.clone()), expected, "{} in chunks of {chunk}", pipeline.name());
                assert!(longer.len() <= expected.len() && longer.iter().all(|step| step.rows <= chunk));
            }
        }
    }
    let decoding = session(&pipelines()[0]).decode_step();
    assert_eq!(decoding.calls(), std::slice::from_ref(&decoding));
}

/// A pipeline with query blocks of `query_block`.
fn blocks_of(query_block: usize) -> Pipeline {
    let text = format!("pub Blocks {{ query_block {query_block}; sink 4; window 16; rope {{ attend streaming }} }}");
    parse_str(&text).expect("a valid pipeline").remove(0)
}

proptest! {
    /// Steps follow each other, stay in a segment, and cut query blocks at the same places whatever the chunk is.
    #[test]
    fn steps_tile_the_prompt(
        which in 0_usize..3,
        before in prop_oneof![Just(0), 0_usize..20_000],
        tokens in 0_usize..30_000,
        chunk in prop::sample::select(vec![64_usize, 128, 512, 2048, 8192]),
    ) {
        let pipeline = &pipelines()[which];
        let shrinks = pipeline.name() == "Shrinking";
        let mut session = session(pipeline);
        session.advance(&Step { start: 0, rows: before, t_max: 0, phase: Phase::Prefill });
        for step in session.prefill_steps(tokens, chunk).expect("a valid chunk") {
            prop_assert_eq!(step.start, session.length());
            prop_assert!(step.rows > 0 && step.rows <= chunk);
            let end = step.start + step.rows;
            prop_assert!(step.start / SEGMENT == (end - 1) / SEGMENT);
            prop_assert_eq!(step.t_max, step.start / SEGMENT * SEGMENT + SEGMENT);
            prop_assert!(step.start == before || step.start.is_multiple_of(64));
            if shrinks {
                prop_assert!(step.rows.is_multiple_of(64) || step.start % 64 + step.rows < 65);
            }
            prop_assert_eq!(&step.phase, &Phase::Prefill);
            session.advance(&step);
        }
        prop_assert_eq!(session.length(), before + tokens);
        prop_assert_eq!(session.decoded(), 0);
        prop_assert_eq!(session.decode_step().start, before + tokens);
    }
}

#[test]
fn staggered_layers_renew_in_turn_and_each_as_often_as_declared() {
    let pipeline = |refresh: &str| {
        let text = format!(
            "pub InTurn {{ {refresh} {} }}",
            PIPELINES.split_once("Uniform {").unwrap().1.split_once("\n    }").unwrap().0
        );
        parse_str(&text).expect("a valid pipeline").remove(0)
    };
    let geometry = *session(&pipelines()[0]).plan().geometry();
    let plan = |refresh| Plan::new(&pipeline(refresh), geometry, vec![1.0; 4], 30).expect("no overrides");
    let (together, staggered) = (plan("refresh together;"), plan("refresh staggered;"));
    for layer in 0..30 {
        assert_eq!(staggered.renewal(layer, 0).restart, Some(0), "nothing crosses from prefill");
        for (plan, name) in [(&together, "together"), (&staggered, "staggered")] {
            for (stage, interval) in [16, 8, 4].into_iter().enumerate() {
                let renewals = (1..=160).filter(|&step| plan.renewal(layer, step).cuts(stage));
                assert_eq!(renewals.count(), 160 / interval, "stage {stage} of layer {layer}, {name}");
            }
        }
    }
    let busiest = |plan: &Plan, stage| {
        let layers = |step| (0..30).filter(|&layer| plan.renewal(layer, step).cuts(stage)).count();
        (1..=160).map(layers).max()
    };
    assert_eq!([0, 1, 2].map(|stage| busiest(&together, stage)), [Some(30); 3]);
    // ⌈30 / 16⌉, ⌈30 / 8⌉ and ⌈30 / 4⌉ layers in the fullest step.
    assert_eq!([0, 1, 2].map(|stage| busiest(&staggered, stage)), [Some(2), Some(4), Some(8)]);
}

#[test]
fn staggered_layers_renew_every_stage_evenly_and_their_patterns_come_back() {
    let flash = parse_str(
        "pub Flash {
            sink 256; window 1_024; refresh staggered;
            stage { chunk 256, refresh 96 }
            stage { keep 32_768, chunk 32, refresh 32 }
            stage { keep 8_192, chunk 8, refresh 8 }
            attend { keep 2_048 }
            rope { scan relative, attend streaming }
            layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
        }",
    );
    let pipeline = flash.expect("a valid pipeline").remove(0);
    let geometry = Geometry { query_heads: 8, kv_heads: 8, ..*session(&pipelines()[0]).plan().geometry() };
    for layers in [30, 32] {
        let plan = Plan::new(&pipeline, geometry, vec![1.0; 4], layers).expect("these layers are there");
        let pattern = |step| (0..layers as usize).map(|layer| plan.renewal(layer, step)).collect::<Vec<_>>();
        for stage in 0..3 {
            let renewed = |step| pattern(step).into_iter().filter(|renewal| renewal.cuts(stage)).count();
            let (least, most) = ([0, 0, 3][stage], [1, 1, 4][stage]);
            for step in 1..=192 {
                assert!((least..=most).contains(&renewed(step)), "stage {stage} of {layers} layers in step {step}");
            }
        }
        // Every pattern but the first is recorded as a graph once, and replayed from then on.
        let patterns: BTreeSet<_> = (0..1000).map(pattern).collect();
        // The first, and one for each step of an interval.
        assert_eq!(patterns.len(), 97);
    }
}

/// A layer of a few of whose heads scan its first stage in a step.
#[test]
fn heads_of_staggered_layers_take_turns_where_layers_leave_steps_to_them() {
    let turns = |interval: u32, kv_heads: u32, layers: u32| {
        let text = format!(
            "pub InTurn {{
                sink 256; window 1_024; refresh staggered;
                stage {{ chunk 256, refresh {interval} }}
                stage {{ keep 8_192, chunk 8, refresh 8 }}
                attend {{ keep 2_048 }}
                rope {{ scan relative, attend streaming }}
            }}"
        );
        let pipeline = parse_str(&text).expect("a valid pipeline").remove(0);
        let geometry = Geometry { query_heads: kv_heads, kv_heads, ..*session(&pipelines()[0]).plan().geometry() };
        let plan = Plan::new(&pipeline, geometry, vec![1.0; 4], layers).expect("no overrides");
        let mut scanned = vec![BTreeSet::new(); layers as usize];
        let mut most = 0;
        for step in 0..2 * interval as usize + 1 {
            let mut heads_of_step = 0;
            for (layer, scanned) in scanned.iter_mut().enumerate() {
                let renewal = plan.renewal(layer, step);
                let heads = renewal.heads(0, kv_heads as usize);
                heads_of_step += heads.len();
                for head in heads {
                    assert!(scanned.insert(head), "head {head} of layer {layer} scans twice before step {step} cuts");
                }
                if renewal.cuts(0) {
                    assert_eq!(scanned.len(), kv_heads as usize, "layer {layer} is cut in step {step}");
                    scanned.clear();
                }
            }
            // The first step renews everything, and so do those before which there was no time for turns.
            if step > interval as usize {
                most = most.max(heads_of_step);
            }
        }
        most
    };
    // Three steps a layer: of eight heads, three at most.
    assert_eq!(turns(96, 8, 32), 3);
    // Thirty layers do not share 96 steps out evenly: some share one.
    assert_eq!(turns(96, 8, 30), 5);
    // No more turns than heads, and none where a step has a layer, or several.
    assert_eq!(turns(96, 2, 32), 1);
    assert_eq!(turns(32, 8, 32), 8);
    assert_eq!(turns(16, 8, 32), 16);
    assert_eq!(turns(16, 8, 1), 1);
}
