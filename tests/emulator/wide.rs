//! Where 32 bits end: caches of many gigabytes, of which only what is touched takes memory, and three million tokens.

use ihip_dsl::emit::{Activation, Buffer, Extent, Family};
use ihip_dsl::reference::{self, Problem};
use ihip_dsl::{AttendRope, KvType, Ranking, ScanRope};
use ihip_tests::support::attention::{Attention, striding};
use ihip_tests::support::emulator::Emulator;
use ihip_tests::support::host::Emulated;
use ihip_tests::support::sample::Random;
use ihip_tests::support::tolerance::SUM;

use crate::families::{Layer, layer, stage};

/// Rows of the largest call.
const ROWS: usize = 48;

/// The layer, with room for `tokens` in its cache.
fn attention(layer: &Layer, tokens: usize) -> Attention {
    let host = Box::new(Emulated::sparse(Emulator::default()));
    Attention::new(host, &layer.plan(), Activation::F32, Extent { rows: ROWS, tokens })
}

/// What the layer does to a text of 648 tokens whose logical pages lie where `pages` says: outputs as bits, and lists.
fn run(layer: &Layer, tokens: usize, pages: Option<&[i32]>) -> (Vec<u32>, Vec<Vec<i32>>) {
    let mut attention = attention(layer, tokens);
    if let Some(pages) = pages {
        attention.write_i32(Buffer::PageTable, pages);
    }
    let (query_heads, kv_heads, head_dim) = layer.heads;
    let (query, key) = ((query_heads * head_dim) as usize, (kv_heads * head_dim) as usize);
    let mut random = Random(3);
    let (keys, values) = (random.floats(600 * key), random.floats(600 * key));
    attention.append(0, &keys, &values);
    let (mut out, masks) = attention.prefill(600, 648, &random.floats(ROWS * (query + 2 * key)));
    let mut lists = masks.lists;
    for position in 648..650 {
        let (step, decoded) = attention.decode(position, position + 1, Some(0), &random.floats(query + 2 * key));
        out.extend(step);
        lists.extend(decoded);
    }
    (out.iter().map(|value| value.to_bits()).collect(), lists)
}

/// A page of this layer takes 4 KiB of 2-byte elements: the edges of 2³¹ and 2³² bytes, which is 2³¹ elements, and of
/// 2³² elements lie between two pages each.
#[test]
fn a_text_across_every_edge_of_32_bits_reads_as_anywhere_else() {
    let stages = [stage(0, 32, 16, 4), stage(128, 8, 16, 1)];
    let layer = layer((4, 2, 64), KvType::F16, 16, (16, 64), &stages, 48, (ScanRope::Relative, AttendRope::Streaming));
    let edges = [1 << 19, 1 << 20, 1 << 21];
    let pages = 650_usize.div_ceil(16);
    // Neighbours in the text lie on both sides of an edge, further ones at other edges.
    let far: Vec<i32> = (0..pages)
        .map(|page| {
            let (edge, round) = (edges[page / 2 % 3], (page / 6) as i32);
            if page % 2 == 0 { edge - 1 - round } else { edge + round }
        })
        .collect();
    let near = run(&layer, 656, None);
    assert_eq!(run(&layer, (edges[2] as usize + 16) * 16, Some(&far)), near);
}

/// What the scans and the cut of a prefill call keep, with rows of scores `stride` entries apart.
fn kept(layer: &Layer, stride: Option<i32>) -> Vec<i32> {
    let mut attention = attention(layer, 256);
    let (query_heads, kv_heads, head_dim) = layer.heads;
    let (query, key) = ((query_heads * head_dim) as usize, (kv_heads * head_dim) as usize);
    let mut random = Random(7);
    let (keys, values) = (random.floats(200 * key), random.floats(200 * key));
    attention.append(0, &keys, &values);
    let mut launches = attention.begin_prefill(200, 248, &random.floats(ROWS * (query + 2 * key)));
    if let Some(stride) = stride {
        // 248 tokens are 31 chunks.
        let rows = ROWS / 16 * attention.rankings();
        attention.spread_scores(rows, 32, stride as usize);
        for launch in &mut launches {
            if matches!(attention.family(launch), Family::Scan | Family::Select) {
                *launch = striding(launch, stride);
            }
        }
    }
    attention.launch(&launches);
    attention.read_i32(Buffer::Blocks)
}

/// Rows of scores that begin beyond 2³¹ and 2³² entries: what many query blocks have, with small chunks of three million
/// tokens.
#[test]
fn rows_of_scores_beyond_32_bits_are_cut_as_any_others() {
    let modes = (ScanRope::Relative, AttendRope::Streaming);
    for (kv_type, ranking) in [(KvType::F32, Ranking::All), (KvType::F16, Ranking::All), (KvType::F16, Ranking::Each)] {
        let mut layer = layer((4, 2, 64), kv_type, 16, (8, 32), &[stage(0, 8, 16, 4)], 64, modes);
        layer.pruning.ranking = ranking;
        let near = kept(&layer, None);
        assert!(near.iter().any(|&block| block > 8), "{near:?}");
        // The second row lies across 2³¹ entries, the third one across 2³².
        assert_eq!(kept(&layer, Some(i32::MAX - 3)), near, "{kv_type:?}, {ranking:?}");
    }
}

/// Three million tokens whose pages are few: every 997th of the text is the same one of the cache.
#[test]
fn the_last_of_three_million_tokens_is_attended_as_the_reference_says() {
    const TOKENS: usize = 3_000_000;
    const PAGES: usize = 997;
    let stages = [stage(0, 256, 64, 4), stage(32_768, 32, 64, 4), stage(8_192, 8, 64, 1)];
    let modes = (ScanRope::Relative, AttendRope::Streaming);
    let layer = layer((2, 1, 32), KvType::F32, 16, (256, 1024), &stages, 2048, modes);
    let head_dim = layer.heads.2 as usize;
    let mut random = Random(5);
    let period = random.floats(PAGES * 16 * head_dim);
    let queries = random.floats(2 * head_dim);
    let keys: Vec<f32> = period.iter().copied().cycle().take(TOKENS * head_dim).collect();

    let mut attention = attention(&layer, TOKENS);
    let pages: Vec<i32> = (0..TOKENS / 16).map(|page| (TOKENS / 16 - 1 - page % PAGES) as i32).collect();
    attention.write_i32(Buffer::PageTable, &pages);
    attention.append(0, &period, &period);
    let last = &keys[(TOKENS - 1) * head_dim..];
    let (out, lists) = attention.decode(TOKENS - 1, TOKENS, Some(0), &[&queries, last, last].concat());

    let frequencies = layer.frequencies();
    let expected = reference::prefill(&Problem {
        pruning: &layer.pruning,
        query_heads: 2,
        kv_heads: 1,
        head_dim,
        kv_type: KvType::F32,
        query_scale: layer.geometry().query_scale,
        frequencies: &frequencies,
        queries: &queries,
        keys: &keys,
        values: &keys,
        first_position: TOKENS - 1,
        t_max: TOKENS,
        trained: layer.geometry().trained as usize,
    });
    let list = &expected.lists[0];
    let blocks: Vec<i32> = list.blocks[..list.count].iter().map(|&block| block as i32).collect();
    assert!(blocks.last().is_some_and(|&last| last > 2_000_000), "{blocks:?}");
    assert_eq!(lists, [blocks]);
    for (got, expected) in out.iter().zip(&expected.out) {
        assert!((got - expected).abs() < SUM, "{got} instead of {expected}");
    }
}

#[test]
fn whatever_a_device_leaves_open_twenty_runs_give_the_same_bits() {
    let stages = [stage(0, 32, 16, 4), stage(128, 8, 16, 1)];
    let layer = layer((4, 2, 32), KvType::Bf16, 16, (16, 64), &stages, 48, (ScanRope::Relative, AttendRope::Streaming));
    let run = |emulator| {
        let extent = Extent { rows: ROWS, tokens: 512 };
        let mut attention = Attention::new(Box::new(Emulated::new(emulator)), &layer.plan(), Activation::Bf16, extent);
        let mut random = Random(11);
        let (keys, values) = (random.floats(400 * 64), random.floats(400 * 64));
        attention.append(0, &keys, &values);
        let (mut out, masks) = attention.prefill(400, 448, &random.floats(ROWS * 256));
        let (step, lists) = attention.decode(448, 449, Some(0), &random.floats(256));
        out.extend(step);
        (out.iter().map(|value| value.to_bits()).collect::<Vec<u32>>(), masks.lists, lists)
    };
    let first = run(Emulator::default());
    for seed in 0..20 {
        // Half of the runs take blocks two at a time.
        let emulator = Emulator { workers: 1 + seed as usize % 2, ..Emulator::random(seed) };
        assert_eq!(run(emulator), first, "seed {seed}");
    }
}
