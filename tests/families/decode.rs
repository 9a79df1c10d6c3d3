//! `attend`, `dense` and `merge` in decoding: one query over lists that nobody selected, and over every key.

use ihip_dsl::emit::Buffer;
use ihip_dsl::reference::{self, BlockList, Tensors};
use ihip_dsl::{KvType, Plan};
use proptest::prelude::*;

use super::attend::{list, tolerance};
use super::{Data, Layer, Noise, check, check_on, difference, layers};

#[test]
fn output_for_random_lists_is_the_references() {
    check(&layers(), 6, &(0..600_usize, any::<u64>()), |layer, attention, (position, seed)| {
        let pruning = &layer.pruning;
        let data = Data::new(layer, position, 1, seed);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_decode(position, position + 1, None, &qkv);
        let mut lists = vec![BlockList::default()];
        if let Some(last) = pruning.stages.last() {
            let width = (pruning.keep / last.chunk) as usize;
            let drawn = list(layer, position + 1, width, &mut Noise(seed ^ 1));
            lists[0] = BlockList { count: drawn.len(), blocks: drawn };
            let blocks: Vec<i32> = lists[0].blocks.iter().map(|&block| block as i32).collect();
            attention.write_i32(Buffer::CachedBlocks, &blocks);
            attention.write_i32(Buffer::CachedCount, &[lists[0].count as i32]);
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

#[test]
fn dense_output_is_the_references() {
    let plan = |layer: &Layer| Plan::dense(layer.geometry(), layer.frequencies(), 1);
    check_on(&layers(), plan, 4, &(0..600_usize, any::<u64>()), |layer, attention, (position, seed)| {
        let data = Data::new(layer, position, 1, seed);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_decode(position, position + 1, None, &qkv);
        attention.launch(&launches);
        let frequencies = layer.frequencies();
        let expected = reference::dense(&data.problem(layer, &frequencies, position + 1));
        let difference = difference(&expected, &attention.out(1));
        let tolerance = if layer.kv_type == KvType::F32 { 2e-5 } else { 2e-2 };
        prop_assert!(difference < tolerance, "outputs differ by {}", difference);
        Ok(())
    });
}
