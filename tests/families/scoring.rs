//! Layers that score and rank in every way the language has words for, and what `append` keeps for them.

use ihip_dsl::emit::{Activation, Buffer, Element, Program, Storage, Value};
use ihip_dsl::{
    AttendRope, ChunkScore, Descent, Halving, KvType, LayerRange, Pipeline, Plan, Probe, QueryReduction, Ranking,
    Refresh, Representative, ScanRope, Scores, Scoring, Stage,
};
use ihip_tests::support::attention::decode;
use ihip_tests::support::tolerance;
use proptest::prelude::*;

use super::{Data, Layer, TOKENS, call, check, difference, layer, stage};

/// A stage that scores otherwise.
fn scored(stage: Stage, scoring: Scoring) -> Stage {
    Stage { scoring, ..stage }
}

fn scoring(representative: Representative, query_reduction: QueryReduction, scores: Scores) -> Scoring {
    Scoring { representative, query_reduction, scores }
}

fn halving(probe: Probe, chunk_score: ChunkScore, descent: Descent) -> Representative {
    Representative::Halving(Halving { probe, chunk_score, descent })
}

/// Every word beside every other that changes what it means, in as few layers as that takes.
pub fn scored_layers() -> Vec<Layer> {
    use {AttendRope as A, KvType as T, QueryReduction as Q, Representative as R, ScanRope as S, Scores as V};
    use {ChunkScore as C, Descent as D, Probe as P};
    let ranked = |mut layer: Layer, ranking| {
        layer.pruning.ranking = ranking;
        layer
    };
    let with = |stage, representative, rows, scores| scored(stage, scoring(representative, rows, scores));
    vec![
        // The paper's halving: first tokens, last scores. Then every key of a small chunk.
        layer(
            (4, 2, 32),
            T::F32,
            16,
            (16, 64),
            &[
                with(stage(0, 16, 32, 4), halving(P::First, C::Last, D::Each), Q::Max, V::Raw),
                with(stage(96, 4, 32, 2), R::Exact, Q::Max, V::Raw),
            ],
            48,
            (S::Relative, A::Streaming),
        ),
        // Groups descend together, with a ranking for each of them.
        ranked(
            layer(
                (8, 2, 64),
                T::Bf16,
                4,
                (16, 50),
                &[
                    with(stage(0, 24, 32, 2), halving(P::Middle, C::RunningMax, D::KvGroup), Q::Max, V::Raw),
                    with(stage(96, 8, 32, 4), halving(P::First, C::RunningMax, D::KvGroup), Q::Mean, V::Raw),
                ],
                40,
                (S::Relative, A::Streaming),
            ),
            Ranking::KvGroup,
        ),
        // Groups descend together, and each head ranks for itself. Means of rows, more rows than fit.
        ranked(
            layer(
                (4, 2, 32),
                T::F32,
                8,
                (8, 40),
                &[
                    with(stage(0, 16, 64, 1), halving(P::Middle, C::Last, D::KvGroup), Q::Max, V::Raw),
                    with(stage(64, 4, 64, 4), halving(P::Middle, C::RunningMax, D::KvGroup), Q::Mean, V::Raw),
                ],
                32,
                (S::ChunkIndexed, A::Streaming),
            ),
            Ranking::Each,
        ),
        // Means of keys first, then every key, at the index of the chunk; means of rows.
        layer(
            (6, 2, 64),
            T::F16,
            16,
            (16, 48),
            &[
                with(stage(0, 16, 32, 4), R::Mean, Q::Mean, V::Raw),
                with(stage(96, 8, 32, 8), R::Exact, Q::Mean, V::Raw),
            ],
            48,
            (S::ChunkIndexed, A::Streaming),
        ),
        // Bounds, of chunks that are no power of two and of single tokens, more rows than fit.
        ranked(
            layer(
                (4, 2, 32),
                T::Bf16,
                16,
                (6, 45),
                &[
                    with(stage(0, 12, 128, 1), R::MinMax, Q::Max, V::Raw),
                    with(stage(60, 1, 128, 16), R::MinMax, Q::Mean, V::Raw),
                ],
                24,
                (S::Infllm, A::Infllm),
            ),
            Ranking::KvGroup,
        ),
        // Bounds and means where the query is turned by the index of the chunk, each head for itself.
        ranked(
            layer(
                (4, 1, 32),
                T::F32,
                16,
                (8, 40),
                &[
                    with(stage(0, 16, 16, 2), R::MinMax, Q::Mean, V::Raw),
                    with(stage(64, 8, 16, 1), R::Mean, Q::Max, V::Raw),
                ],
                48,
                (S::ChunkIndexed, A::Streaming),
            ),
            Ranking::Each,
        ),
        // Means, bounds and every key, each by its largest row.
        layer(
            (4, 2, 64),
            T::Bf16,
            16,
            (16, 64),
            &[
                with(stage(0, 32, 64, 4), R::Mean, Q::Max, V::Raw),
                with(stage(192, 16, 64, 2), R::MinMax, Q::Max, V::Raw),
                with(stage(96, 4, 64, 1), R::Exact, Q::Max, V::Raw),
            ],
            32,
            (S::Relative, A::Streaming),
        ),
        // A group with more rows than fit, and chunks with more pages; then its keys at the index of the chunk.
        layer(
            (4, 1, 64),
            T::Bf16,
            4,
            (16, 192),
            &[
                with(stage(0, 96, 64, 1), halving(P::Middle, C::RunningMax, D::KvGroup), Q::Max, V::Raw),
                Stage {
                    rope: Some(S::ChunkIndexed),
                    ..with(stage(192, 8, 64, 1), halving(P::Middle, C::RunningMax, D::KvGroup), Q::Max, V::Raw)
                },
            ],
            48,
            (S::Relative, A::Streaming),
        ),
        // Distributions over what a descent found: of a group, then of each head.
        layer(
            (4, 2, 32),
            T::F32,
            16,
            (16, 64),
            &[
                with(stage(0, 32, 64, 4), halving(P::Middle, C::RunningMax, D::KvGroup), Q::Mean, V::Soft),
                with(stage(128, 8, 64, 1), halving(P::First, C::Last, D::Each), Q::Max, V::Soft),
            ],
            48,
            (S::Relative, A::Streaming),
        ),
        // Distributions over keys and bounds; rotated keys.
        ranked(
            layer(
                (4, 2, 64),
                T::F32,
                16,
                (8, 32),
                &[
                    with(stage(0, 8, 128, 1), R::Exact, Q::Mean, V::Soft),
                    with(stage(96, 4, 32, 4), R::MinMax, Q::Max, V::Soft),
                ],
                48,
                (S::None, A::None),
            ),
            Ranking::Each,
        ),
        // Distributions over means and over descents at the index of the chunk.
        ranked(
            layer(
                (6, 3, 32),
                T::F16,
                8,
                (8, 40),
                &[
                    with(stage(0, 16, 32, 2), R::Mean, Q::Max, V::Soft),
                    with(stage(96, 8, 32, 4), halving(P::Middle, C::RunningMax, D::Each), Q::Mean, V::Soft),
                ],
                48,
                (S::ChunkIndexed, A::Streaming),
            ),
            Ranking::KvGroup,
        ),
    ]
}

/// The summaries that layer 0 keeps of chunks of the first `end` tokens: of `chunk` tokens after `sink`.
fn summaries(data: &Data, layer: &Layer, sink: usize, chunk: usize, end: usize, bounds: bool) -> Vec<f32> {
    let (kv_heads, head_dim) = (layer.heads.1 as usize, layer.heads.2 as usize);
    let mut expected = Vec::new();
    for first in (sink..(end + 1).saturating_sub(chunk)).step_by(chunk) {
        for head in 0..kv_heads {
            let elements = |element: usize| {
                (first..first + chunk).map(move |token| data.keys[(token * kv_heads + head) * head_dim + element])
            };
            let all = 0..head_dim;
            if bounds {
                expected.extend(all.clone().map(|element| elements(element).fold(f32::INFINITY, f32::min)));
                expected.extend(all.map(|element| elements(element).fold(f32::NEG_INFINITY, f32::max)));
            } else {
                expected.extend(all.map(|element| elements(element).sum::<f32>() / chunk as f32));
            }
        }
    }
    expected
}

#[test]
fn means_and_bounds_are_kept_of_every_chunk_that_is_complete() {
    let layers: Vec<Layer> = scored_layers().into_iter().filter(|layer| !layer.pruning.rope.rotated_cache()).collect();
    let mut kept = 0;
    for layer in &layers {
        let plan = layer.plan();
        let program = Program::new(&plan, Activation::F32).expect("a usual head");
        let extent = ihip_dsl::emit::Extent { rows: super::ROWS, tokens: TOKENS };
        let state = program.layer_state(0, extent);
        let summary = |storage: &Storage| matches!(storage.buffer, Buffer::Means { .. } | Buffer::Bounds { .. });
        let state: Vec<Storage> = state.into_iter().filter(summary).collect();
        kept += state.len();
        check(std::slice::from_ref(layer), 4, &(call(), any::<u64>()), |layer, attention, ((first, rows, _), seed)| {
            let data = Data::new(layer, first, rows, seed);
            // Everything but the last row in calls, the last one as a decoding step.
            let qkv = data.cache(layer, attention);
            let row = qkv.len() / rows;
            if rows > 1 {
                let launches = attention.begin_prefill(first, first + rows, &qkv[..(rows - 1) * row]);
                attention.launch_appends(&launches);
            }
            let end = first + rows;
            let launches = attention.begin_decode(end - 1, end, None, &qkv[(rows - 1) * row..]);
            attention.launch_appends(&launches);
            for storage in &state {
                let (sink, chunk, bounds, element) = match storage.buffer {
                    Buffer::Means { sink, chunk } => (sink, chunk, false, Element::F32),
                    Buffer::Bounds { sink, chunk } => (sink, chunk, true, Element::from(layer.kv_type)),
                    other => panic!("{other:?} is no summary"),
                };
                let expected = summaries(&data, layer, sink, chunk, end, bounds);
                let got = decode(element, &attention.read(storage.buffer));
                prop_assert!(got.len() >= expected.len(), "{} elements for {}", got.len(), expected.len());
                let difference = difference(&expected, &got[..expected.len()]);
                let tolerance = if bounds { 0.0 } else { tolerance::ELEMENT };
                prop_assert!(difference <= tolerance, "{:?} differs by {}", storage.buffer, difference);
            }
            Ok(())
        });
    }
    assert!(kept >= 6, "only {kept} arrays of means and bounds");
}

/// Names of the kernels of a pipeline whose layers 0 and 1 do this and that.
fn kernels_of_two(base: &Layer, other: &Layer) -> Vec<String> {
    let overrides = vec![LayerRange { first: 1, last: 1, phases: other.pruning.clone().into() }];
    let phases = base.pruning.clone().into();
    let pipeline = Pipeline::from_checked("Two".into(), "".into(), Refresh::Together, phases, overrides.into());
    let plan = Plan::new(&pipeline, base.geometry(), base.frequencies(), 2).expect("two layers");
    let program = Program::new(&plan, Activation::F32).expect("a usual head");
    program.kernels().into_iter().map(|kernel| kernel.name).collect()
}

#[test]
fn layers_that_score_otherwise_share_all_kernels_but_those_of_the_stage() {
    let base = layer(
        (4, 2, 32),
        KvType::F32,
        16,
        (16, 64),
        &[stage(0, 32, 64, 4), stage(128, 8, 64, 1)],
        48,
        (ScanRope::Relative, AttendRope::Streaming),
    );
    let alone = kernels_of_two(&base, &base);
    let mut other = base.clone();
    other.pruning.stages.to_mut()[0].scoring.representative = Representative::MinMax;
    let both = kernels_of_two(&base, &other);
    let added: Vec<&String> = both.iter().filter(|name| !alone.contains(name)).collect();
    insta::assert_debug_snapshot!(added, @r#"
    [
        "ihip_two_append_bounds_c32_d32_f32",
        "ihip_two_s0_scan_min_max_relative_c32_d32_f32",
        "ihip_two_s0_scan_decode_min_max_relative_c32_d32_f32",
    ]
    "#);
    other.pruning.stages.to_mut()[0].scoring.query_reduction = QueryReduction::Mean;
    other.pruning.stages.to_mut()[0].scoring.scores = Scores::Soft;
    let both = kernels_of_two(&base, &other);
    let added: Vec<&String> = both.iter().filter(|name| !alone.contains(name)).collect();
    insta::assert_debug_snapshot!(added, @r#"
    [
        "ihip_two_append_bounds_c32_d32_f32",
        "ihip_two_s0_scan_min_max_mean_rows_soft_relative_c32_d32_f32",
        "ihip_two_s0_normalise_mean_rows_c32_h4",
        "ihip_two_s0_scan_decode_min_max_soft_relative_c32_d32_f32",
    ]
    "#);
}

#[test]
fn soft_stages_lay_their_rows_out_by_chunks_of_their_own() {
    use QueryReduction as Q;
    // The first stage has few chunks and many rows, the second many chunks and few rows.
    let stages = [
        scored(stage(0, 64, 64, 1), scoring(Representative::default(), Q::Max, Scores::Soft)),
        scored(stage(256, 2, 64, 16), scoring(Representative::Exact, Q::Max, Scores::Soft)),
    ];
    let modes = (ScanRope::Relative, AttendRope::Streaming);
    let layer = layer((4, 2, 32), KvType::F32, 16, (16, 128), &stages, 32, modes);
    let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head");
    let extent = ihip_dsl::emit::Extent { rows: super::ROWS, tokens: TOKENS };
    let chunks = [(TOKENS - 16 - 128).div_ceil(64), 256 / 2];
    for launches in [program.prefill(0, extent, 100, 500), program.decode(0, extent, Some(0).into())] {
        let strides = launches.iter().filter_map(|launch| {
            let rows = launch.arguments.contains(&Value::Buffer(Buffer::RowScores));
            launch.arguments.iter().find(|value| rows && matches!(value, Value::I32(_)))
        });
        let mut strides: Vec<Value> = strides.copied().collect();
        strides.dedup();
        assert_eq!(strides, chunks.map(|chunks| Value::I32(chunks as i32)));
    }
    // Of 4 heads and 3 query blocks, 64 rows and 4.
    let storage = program.workspace(extent).into_iter().find(|storage| storage.buffer == Buffer::RowScores);
    assert_eq!(storage.map(|storage| storage.count), Some(3 * 4 * 64 * chunks[0]));

    check(&[layer], 4, &(call(), any::<u64>()), super::whole::prefill);
}
