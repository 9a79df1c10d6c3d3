//! `attend` and `dense` in prefill: the output for lists that nobody selected, and for no list at all.

use ihip_dsl::Plan;
use ihip_dsl::emit::Buffer;
use ihip_dsl::reference::{self, BlockList, Tensors};
use ihip_tests::support::tolerance;
use proptest::prelude::*;

use super::{Data, Layer, Noise, attended_layers, call, check, check_on, difference, layers};

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
        let frequencies = layer.frequencies();
        let expected = reference::dense(&data.problem(layer, &frequencies, first + rows));
        let difference = difference(&expected, &attention.out(rows));
        // Keys are cached rotated, and rounded to the cache's type after that.
        let tolerance = tolerance::output(layer.kv_type, true);
        prop_assert!(difference < tolerance, "outputs differ by {}", difference);
        Ok(())
    });
}
