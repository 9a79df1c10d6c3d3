//! `attend`, `dense` and `merge` in decoding: one query over lists that nobody selected, and over every key.

use ihip_dsl::Plan;
use ihip_dsl::emit::Buffer;
use ihip_dsl::reference::{self, BlockList, Tensors};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::tolerance::output;
use proptest::prelude::*;

use super::attend::{list, tolerance};
use super::{Data, Layer, Noise, attended_layers, check, check_on, difference, layers};

#[test]
fn output_for_random_lists_is_the_references() {
    check(&attended_layers(), 6, &(0..600_usize, any::<u64>()), |layer, attention, (position, seed)| {
        let pruning = &layer.pruning;
        let data = Data::new(layer, position, 1, seed);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_decode(position, position + 1, None, &qkv);
        let mut lists = vec![BlockList::default(); attention.rankings()];
        if let Some(last) = pruning.stages.last() {
            let (width, mut noise) = ((pruning.keep / last.chunk) as usize, Noise(seed ^ 1));
            let (mut blocks, mut counts) = (Vec::new(), Vec::new());
            for (ranking, entry) in lists.iter_mut().enumerate() {
                let drawn = list(layer, position + 1, width, &mut noise);
                *entry = BlockList { count: drawn.len(), blocks: drawn };
                counts.push(entry.count as i32);
                blocks.extend(entry.blocks.iter().map(|&block| block as i32));
                blocks.resize((ranking + 1) * width, -1);
            }
            attention.write_i32(Buffer::CachedBlocks, &blocks);
            attention.write_i32(Buffer::CachedCount, &counts);
        }
        attention.launch(&launches);
        let frequencies = layer.frequencies();
        let tensors = Tensors::new(&data.problem(layer, &frequencies, position + 1));
        let expected = reference::attend::pruned(&tensors, &lists);
        let difference = difference(&expected, &attention.out(1));
        prop_assert!(difference < tolerance(layer), "outputs differ by {}", difference);
        Ok(())
    });
}

/// A decoding step of a dense layer.
pub(super) fn dense(
    layer: &Layer,
    attention: &mut Attention,
    (position, seed): (usize, u64),
) -> Result<(), TestCaseError> {
    let data = Data::new(layer, position, 1, seed);
    let qkv = data.cache(layer, attention);
    let launches = attention.begin_decode(position, position + 1, None, &qkv);
    attention.launch(&launches);
    let frequencies = layer.frequencies();
    let expected = reference::dense(&data.problem(layer, &frequencies, position + 1));
    let difference = difference(&expected, &attention.out(1));
    // Keys are cached rotated.
    prop_assert!(difference < output(layer.kv_type, true), "outputs differ by {}", difference);
    Ok(())
}

#[test]
fn dense_output_is_the_references() {
    let plan = |layer: &Layer| Plan::dense(layer.geometry(), layer.frequencies(), 1);
    check_on(&layers(), plan, 4, &(0..600_usize, any::<u64>()), dense);
}
