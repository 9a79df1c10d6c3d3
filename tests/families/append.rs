//! `append`: what the cache holds afterwards, page by page.

use ihip_dsl::emit::Buffer;
use ihip_dsl::reference::{cache, rope};
use ihip_tests::support::tolerance;
use proptest::prelude::*;

use super::quantised::quantised_layers;
use super::{Data, Layer, TOKENS, call, check, difference, layers};

/// Everything cached before position `end`, `[keys, kv_heads, head_dim]`; pages lie in reverse.
fn cached(layer: &Layer, bytes: &[u8], end: usize) -> Vec<f32> {
    let (_, kv_heads, head_dim) = layer.heads;
    let (kv_heads, head_dim, page) = (kv_heads as usize, head_dim as usize, layer.page as usize);
    let values = layer.kv_type.decode(bytes, page, head_dim);
    let pages = TOKENS.div_ceil(page);
    let mut tokens = Vec::new();
    for position in 0..end {
        for head in 0..kv_heads {
            let physical = pages - 1 - position / page;
            let row = (physical * kv_heads + head) * page + position % page;
            tokens.extend_from_slice(&values[row * head_dim..][..head_dim]);
        }
    }
    tokens
}

/// What the cache holds of rows.
fn held(layer: &Layer, rows: &[f32]) -> Vec<f32> {
    let mut rows: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
    rows.chunks_mut(layer.heads.2 as usize).for_each(|row| cache::hold(layer.kv_type, row));
    rows.into_iter().map(|x| x as f32).collect()
}

#[test]
fn rows_end_up_at_their_positions() {
    let quantised = quantised_layers().into_iter().filter(|layer| !layer.pruning.rope.rotated_cache());
    let layers: Vec<Layer> = layers().into_iter().chain(quantised).collect();
    check(&layers, 3, &(call(), any::<u64>()), |layer, attention, ((first, rows, _), seed)| {
        let data = Data::new(layer, first, rows, seed);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_prefill(first, first + rows, &qkv);
        attention.launch(&launches[..1]);
        let values = cached(layer, &attention.read(Buffer::Values), first + rows);
        prop_assert_eq!(&values, &held(layer, &data.values));
        let keys = cached(layer, &attention.read(Buffer::Keys), first + rows);
        if !layer.pruning.rope.rotated_cache() {
            prop_assert_eq!(&keys, &held(layer, &data.keys));
            return Ok(());
        }
        let head_dim = layer.heads.2 as usize;
        let heads = data.keys.chunks(head_dim).enumerate();
        let rotated = heads.flat_map(|(index, head)| {
            let head: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
            rope::rotate(&head, index * head_dim / layer.key_row(), &layer.frequencies())
        });
        let rotated: Vec<f32> = rotated.map(|x| x as f32).collect();
        let difference = difference(&rotated, &keys);
        prop_assert!(difference < tolerance::ELEMENT, "keys differ by {}", difference);
        Ok(())
    });
}
