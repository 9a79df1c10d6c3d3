//! `attend` and `dense` in prefill: the output for lists that nobody selected, and for no list at all.

use ihip_dsl::emit::{Activation, Buffer, Extent, Instructions, Program};
use ihip_dsl::reference::{self, BlockList, Tensors};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{AttendRope, Descent, Halving, KvType, Plan, Representative, ScanRope};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use ihip_tests::support::tolerance;
use proptest::prelude::*;

use super::{
    Data, Layer, Noise, ROWS, TOKENS, attended_layers, call, check, check_on, check_with, difference, layer, layers,
    stage,
};

/// Ascending blocks drawn from all behind the sinks that begin before `end`, at most `width` of them.
pub(super) fn list(layer: &Layer, end: usize, width: usize, noise: &mut Noise) -> Vec<usize> {
    let block = layer.pruning.stages.last().map_or(1, |stage| stage.chunk as usize);
    let sink = layer.pruning.sink as usize;
    let Some(candidates) = end.checked_sub(sink + 1).map(|last| last / block + 1) else { return Vec::new() };
    let count = noise.below(width + 1);
    let mut drawn: Vec<usize> = (0..count).map(|_| sink + noise.below(candidates) * block).collect();
    drawn.sort_unstable();
    drawn.dedup();
    drawn
}

/// How far an output of the layer may be off.
pub(super) fn tolerance(layer: &Layer) -> f32 {
    tolerance::output(layer.kv_type, layer.pruning.rope.rotated_cache())
}

#[test]
fn output_for_random_lists_is_the_references() {
    check(&attended_layers(), 4, &(call(), any::<u64>()), |layer, attention, ((first, rows, _), seed)| {
        let pruning = &layer.pruning;
        let data = Data::new(layer, first, rows, seed);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_prefill(first, first + rows, &qkv);
        let (query_block, mut noise) = (pruning.query_block as usize, Noise(seed ^ 1));
        let rankings = attention.rankings();
        let mut lists = vec![BlockList::default(); rows.div_ceil(query_block) * rankings];
        if let Some(last) = pruning.stages.last() {
            let width = (pruning.keep / last.chunk) as usize;
            let (mut blocks, mut counts) = (Vec::new(), Vec::new());
            for (number, entry) in lists.iter_mut().enumerate() {
                let end = first + (number / rankings + 1) * query_block;
                let drawn = list(layer, end, width, &mut noise);
                *entry = BlockList { count: drawn.len(), blocks: drawn };
                counts.push(entry.count as i32);
                blocks.extend(entry.blocks.iter().map(|&block| block as i32));
                blocks.resize((number + 1) * width, -1);
            }
            attention.write_i32(Buffer::Blocks, &blocks);
            attention.write_i32(Buffer::Counts, &counts);
        }
        attention.launch(&launches[..1]);
        attention.launch(&launches[launches.len() - 1..]);
        let frequencies = layer.frequencies();
        let tensors = Tensors::new(&data.problem(layer, &frequencies, first + rows));
        let expected = reference::attend::pruned(&tensors, &lists);
        let difference = difference(&expected, &attention.out(rows));
        prop_assert!(difference < tolerance(layer), "outputs differ by {}", difference);
        Ok(())
    });
}

#[test]
fn dense_output_is_the_references() {
    let plan = |layer: &Layer| Plan::dense(layer.geometry(), layer.frequencies(), 1);
    check_on(&layers(), plan, 3, &(call(), any::<u64>()), |layer, attention, ((first, rows, _), seed)| {
        let data = Data::new(layer, first, rows, seed);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_prefill(first, first + rows, &qkv);
        attention.launch(&launches);
        attends_to_every_key(layer, &data, attention, first + rows, rows)
    });
}

/// Compares the outputs of a call with dense attention over the first `end` keys, cached rotated and rounded to the cache's
/// type after that.
fn attends_to_every_key(
    layer: &Layer,
    data: &Data,
    attention: &mut Attention,
    end: usize,
    rows: usize,
) -> Result<(), TestCaseError> {
    let frequencies = layer.frequencies();
    let expected = reference::dense(&data.problem(layer, &frequencies, end));
    let difference = difference(&expected, &attention.out(rows));
    prop_assert!(difference < tolerance::output(layer.kv_type, true), "outputs differ by {}", difference);
    Ok(())
}

/// Layers of one segment of trained positions, which dense attention reads faster than any scan.
pub(super) fn short_layers() -> Vec<Layer> {
    let stages = [stage(0, 32, 64, 4), stage(8192, 8, 64, 1)];
    let layer = |kv_type, modes| layer((4, 2, 64), kv_type, 16, (16, 64), &stages, 4096, modes);
    vec![
        layer(KvType::Bf16, (ScanRope::Relative, AttendRope::Streaming)),
        layer(KvType::F16, (ScanRope::None, AttendRope::None)),
    ]
}

#[test]
fn a_prompt_that_begins_densely_attends_to_every_key_at_its_true_position() {
    let attention = |layer: &Layer| {
        let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head").with_dense_path();
        assert_eq!(program.dense_path(0).tokens, 8192, "all that the model was trained on");
        let pages = TOKENS.div_ceil(layer.page as usize);
        Attention::running(host(), program, Extent { rows: ROWS, tokens: TOKENS }, pages)
    };
    check_with(
        &short_layers(),
        attention,
        3,
        &(call(), any::<u64>()),
        |layer, attention, ((first, rows, spare), seed)| {
            let data = Data::new(layer, first, rows, seed);
            let qkv = data.cache(layer, attention);
            let launches = attention.begin_prefill(first, first + rows + spare, &qkv);
            attention.launch(&launches);
            attends_to_every_key(layer, &data, attention, first + rows, rows)?;
            // Lists do not come into it, and what comes after finds the cache as the pipeline declares it.
            let (_, lists) =
                attention.decode(first + rows - 1, first + rows, Some(0), &qkv[(rows - 1) * (qkv.len() / rows)..]);
            prop_assert!(!lists.is_empty());
            Ok(())
        },
    );
}

#[test]
fn a_prompt_begins_densely_only_as_far_as_it_pays_and_the_model_was_trained() {
    let tokens = |layer: &Layer, instructions| {
        let program = Program::with(&layer.plan(), Activation::F32, instructions, Tunings::default());
        program.expect("a usual head").with_dense_path().dense_path(0)
    };
    let stages = [stage(0, 256, 64, 4), stage(32_768, 32, 64, 4), stage(8_192, 8, 64, 1)];
    let modes = (ScanRope::Relative, AttendRope::Streaming);
    let mut paper = layer((32, 8, 128), KvType::Bf16, 16, (256, 1024), &stages, 2048, modes);
    paper.trained = 131_072;
    // Measured on an H200: of 32K, the last 8K take 8.9 ms densely and 8.0 pruned.
    let path = tokens(&paper, Instructions::Hopper);
    assert_eq!(path.tokens, 24_576);
    assert!((0.0105..0.0125).contains(&path.estimate.dense), "{path:?}");
    assert!((0.016..0.022).contains(&path.estimate.pruned), "{path:?}");
    assert_eq!(tokens(&paper, Instructions::Portable).tokens, 16_384);
    // A group that descends together loads less and multiplies as much, here with rows that take turns: 20.6 ms and 37.0.
    let mut together = paper.clone();
    for stage in together.pruning.stages.to_mut() {
        let halving = Halving { descent: Descent::KvGroup, ..Halving::default() };
        stage.scoring.representative = Representative::Halving(halving);
    }
    let path = tokens(&together, Instructions::Hopper);
    assert_eq!(path.tokens, 32_768);
    assert!((0.019..0.022).contains(&path.estimate.dense), "{path:?}");
    assert!((0.033..0.041).contains(&path.estimate.pruned), "{path:?}");
    paper.trained = 20_000;
    assert_eq!(tokens(&paper, Instructions::Hopper).tokens, 16_384);
    paper.kv_type = KvType::F32;
    assert_eq!(tokens(&paper, Instructions::Hopper).tokens, 0, "no tensor core multiplies these");
}
