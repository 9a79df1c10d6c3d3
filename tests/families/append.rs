//! `append`: what the cache holds afterwards, page by page.

use ihip_dsl::emit::Buffer;
use ihip_dsl::reference::{cache, rope};
use ihip_tests::support::tolerance;
use proptest::prelude::*;

use super::quantised::quantised_layers;
use super::{Data, Layer, Noise, TOKENS, call, check, difference, every_head, layers};

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

/// Numbers of which a cache rounds most: ties of every mantissa, whole numbers and halves, anything at all. One row in four
/// has an infinity and a NaN.
fn wild_rows(rows: &mut [f32], head_dim: usize, noise: &mut Noise) {
    for row in rows.chunks_mut(head_dim) {
        let way = noise.below(4);
        for x in &mut *row {
            let bits = noise.bits() as u32;
            *x = match way {
                // Exponents from −20 to 11, and mantissas that end where halves of steps do.
                0 => f32::from_bits((bits & 0x8000_0000) | (107 + (bits >> 3) % 32) << 23 | (bits >> 9 & 0xff) << 15),
                1 => (bits % 65) as f32 / 2.0 - 16.0,
                _ => f32::from_bits(bits),
            };
        }
        if way == 3 {
            row[noise.below(head_dim)] = f32::NEG_INFINITY;
            row[noise.below(head_dim)] = f32::NAN;
        }
    }
}

#[test]
fn numbers_of_every_size_are_rounded_as_their_type_says() {
    let plain = |layer: &Layer| !layer.pruning.rope.rotated_cache();
    let every = every_head().into_iter().chain(layers()).filter(plain);
    // The text depends on type and shape alone.
    let layers: Vec<Layer> = every.filter(|layer| layer.heads.2 < 128 || layer.kv_type.most().is_some()).collect();
    check(&layers, 2, &any::<u64>(), |layer, attention, seed| {
        let rows = 24;
        let mut data = Data::new(layer, 0, rows, seed);
        let mut noise = Noise(seed);
        wild_rows(&mut data.keys, layer.heads.2 as usize, &mut noise);
        wild_rows(&mut data.values, layer.heads.2 as usize, &mut noise);
        let qkv = data.cache(layer, attention);
        let launches = attention.begin_prefill(0, rows, &qkv);
        attention.launch(&launches[..1]);
        for (buffer, given) in [(Buffer::Keys, &data.keys), (Buffer::Values, &data.values)] {
            let got = cached(layer, &attention.read(buffer), rows);
            // Whole numbers know no zero but one.
            let bits = |x: f32| if layer.kv_type.most().is_some() { (x + 0.0).to_bits() } else { x.to_bits() };
            let is_same = |(&got, &wanted): (&f32, &f32)| bits(got) == bits(wanted) || got.is_nan() && wanted.is_nan();
            let wanted = held(layer, given);
            let off = got.iter().zip(&wanted).position(|pair| !is_same(pair));
            prop_assert!(off.is_none(), "{:?}", off.map(|at| (at, given[at], got[at], wanted[at])));
        }
        Ok(())
    });
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
