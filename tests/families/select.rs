//! `select`: the same chunks as a sort would keep, ties and missing scores included.

use ihip_dsl::emit::{Activation, Buffer, Extent, Value};
use ihip_dsl::reference::{scan, select};
use ihip_dsl::{AttendRope, KvType, ScanRope};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{Layer, Noise, ROWS, TOKENS, check, check_with, layer, layers, stage};

/// A layer of one stage of single tokens.
fn single_tokens(keep: u32) -> Layer {
    let modes = (ScanRope::None, AttendRope::None);
    layer((2, 1, 32), KvType::F32, 16, (0, 8), &[stage(0, 1, 64, 1)], keep, modes)
}

/// Layers with a ranking.
fn pruned() -> Vec<Layer> {
    layers().into_iter().filter(|layer| !layer.pruning.stages.is_empty()).chain([single_tokens(24)]).collect()
}

/// A score as the scan writes it: an integer of the same order, 0 for none.
fn ordered(score: f32) -> i32 {
    let bits = score.to_bits();
    (if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }).cast_signed()
}

#[test]
fn kept_chunks_are_those_of_a_sort() {
    // Fewer chunks than are kept, some more, and as many as there may be.
    let first = prop_oneof![0..40_usize, 40..400_usize, 470..480_usize];
    let strategy = (first, prop_oneof![1..=8_usize, 1..=ROWS], 1..12_usize, any::<u64>());
    check(&pruned(), 12, &strategy, |layer, attention, drawn| kept(layer, attention, drawn, TOKENS));
}

/// Lists that are several times as long as a block has threads, of which few and most chunks are kept.
#[test]
fn kept_chunks_of_long_lists_are_those_of_a_sort() {
    const LONG: usize = 9000;
    let attention = |layer: &Layer| {
        let extent = Extent { rows: ROWS, tokens: LONG };
        Attention::new(host(), &layer.plan(), Activation::F32, extent)
    };
    let strategy = (prop_oneof![900..1200_usize, 3000..8800_usize], 1..=70_usize, 1..12_usize, any::<u64>());
    check_with(&[single_tokens(24), single_tokens(3000)], attention, 3, &strategy, |layer, attention, drawn| {
        kept(layer, attention, drawn, LONG)
    });
}

/// Selects among scores of `levels` levels for `rows` queries from position `first` on, and compares with a sort.
fn kept(
    layer: &Layer,
    attention: &mut Attention,
    (first, rows, levels, seed): (usize, usize, usize, u64),
    tokens: usize,
) -> Result<(), TestCaseError> {
    let pruning = &layer.pruning;
    let t_max = (first + rows + 50).min(tokens);
    let row = layer.query_row() + 2 * layer.key_row();
    let launches = attention.begin_prefill(first, t_max, &vec![0.0; rows * row]);
    let mut noise = Noise(seed);
    let blocks = rows.div_ceil(pruning.stages[0].query_block as usize);
    let mut lists = vec![scan::first_chunks(pruning, t_max); blocks];
    for (index, stage) in pruning.stages.iter().enumerate() {
        // Few levels make many ties.
        let scores: Vec<Vec<f32>> = lists
            .iter()
            .map(|list| {
                let draw = |noise: &mut Noise| match noise.below(4) {
                    0 => scan::NEVER_SCORED,
                    _ => noise.below(levels) as f32 - 3.0,
                };
                list.iter().map(|_| draw(&mut noise)).collect()
            })
            .collect();
        let launch = &launches[2 + 2 * index];
        let Some(Value::I32(stride)) = launch.arguments.last() else { panic!("no stride in {launch:?}") };
        let mut written = vec![0; blocks_of(rows, stage.query_block) * *stride as usize];
        for (block, scores) in scores.iter().enumerate() {
            for (chunk, &score) in scores.iter().enumerate() {
                // Nobody scored it, or somebody scored it as low as that: both rank last.
                let never = score == scan::NEVER_SCORED && chunk % 2 == 0;
                written[block * *stride as usize + chunk] = if never { 0 } else { ordered(score) };
            }
        }
        attention.write_i32(Buffer::Scores, &written);
        attention.launch(std::slice::from_ref(launch));
        prop_assert!(attention.scores_are_zero(), "stage {} leaves scores behind", index);

        let next = pruning.stages.get(index + 1);
        let keep = next.map_or(pruning.keep, |next| next.keep.expect("a later stage")) / stage.chunk;
        let cuts = lists.iter().zip(&scores).map(|(list, scores)| select::cut(list, scores, keep as usize).kept);
        let kept: Vec<Vec<usize>> = cuts.collect();
        let Some(next) = next else {
            let (got, counts) = (attention.read_i32(Buffer::Blocks), attention.read_i32(Buffer::Counts));
            for (block, kept) in kept.iter().enumerate() {
                let start = first + block * stage.query_block as usize;
                let expected = select::final_list(kept, start, stage.query_block as usize);
                let got = &got[block * keep as usize..][..keep as usize];
                prop_assert_eq!(&integers(&expected.blocks, got.len()), got, "block {}", block);
                prop_assert_eq!(expected.count as i32, counts[block], "block {}", block);
            }
            return Ok(());
        };
        let got = attention.read_i32(Buffer::Lists { stage: index + 1 });
        for (block, kept) in kept.iter().enumerate() {
            let got = &got[block * (keep as usize + 1)..][..keep as usize + 1];
            prop_assert_eq!(&integers(kept, keep as usize), &got[..keep as usize], "block {}", block);
            prop_assert_eq!(kept.len() as i32, got[keep as usize], "block {}", block);
        }
        let (parents, children) = (kept.len(), blocks_of(rows, next.query_block));
        let ratio = (stage.query_block / next.query_block) as usize;
        let split = |child| {
            let parent = select::parent(child, children, parents, ratio);
            select::split(&kept[parent], stage.chunk as usize, next.chunk as usize)
        };
        lists = (0..children).map(split).collect();
    }
    Ok(())
}

fn blocks_of(rows: usize, query_block: u32) -> usize {
    rows.div_ceil(query_block as usize)
}

/// A list with −1 in what is left of its `width` entries.
fn integers(list: &[usize], width: usize) -> Vec<i32> {
    let mut integers: Vec<i32> = list.iter().map(|&position| position as i32).collect();
    integers.resize(width, -1);
    integers
}
