//! Chunks scored as a whole: by their mean, by bounds of their keys, or by every key.
//!
//! All keys of such a chunk are represented as the right half of one would be, so that a chunk of one token scores as it
//! does by halving.

use super::rope::Branch;
use super::scan::{Reached, Scan};
use super::tensors::dot;

/// What query head `head` makes of each chunk by a summary of its keys, as they are cached: `product` takes a query,
/// turned by its distance to the chunk, and the keys.
pub(super) fn scores(
    scan: &Scan<'_>,
    head: usize,
    chunks: &[usize],
    product: fn(&[f64], &[&[f64]]) -> f64,
) -> Vec<Option<Reached>> {
    let (tensors, chunk) = (scan.tensors, scan.stage().chunk as usize);
    chunks
        .iter()
        .enumerate()
        .map(|(index, &start)| {
            scan.visible(start).then(|| {
                let keys: Vec<&[f64]> =
                    (start..start + chunk).map(|position| tensors.key(position, tensors.kv_head(head))).collect();
                let queries = scan.turned_queries(head, index, start);
                let rows: Vec<f64> = queries.iter().map(|query| product(query, &keys)).collect();
                Reached { score: scan.reduced(&rows), rows, closest: f32::INFINITY }
            })
        })
        .collect()
}

/// The product with the mean of the keys (MoBA, arXiv 2502.13189 §2.2: mean pooling over a block's keys).
pub(super) fn mean(query: &[f64], keys: &[&[f64]]) -> f64 {
    let mut sum = vec![0.0; query.len()];
    for key in keys {
        for (sum, k) in sum.iter_mut().zip(*key) {
            *sum += k;
        }
    }
    dot(query, &sum) / keys.len() as f64
}

/// An upper bound of the product with any of the keys (Quest, arXiv 2406.10774 §3.2): of each element the larger product
/// with the least and the greatest that any key has there, summed.
pub(super) fn min_max(query: &[f64], keys: &[&[f64]]) -> f64 {
    let bound = |(element, q): (usize, &f64)| {
        let of_keys = || keys.iter().map(|key| key[element]);
        let least = of_keys().fold(f64::INFINITY, f64::min);
        let greatest = of_keys().fold(f64::NEG_INFINITY, f64::max);
        (q * least).max(q * greatest)
    };
    query.iter().enumerate().map(bound).sum()
}

/// What query head `head` makes of each chunk by the largest product with any of its keys: what every representative is
/// an estimate of. Rows are reduced for each key, then the keys to the best of them.
pub(super) fn exact(scan: &Scan<'_>, head: usize, chunks: &[usize]) -> Vec<Option<Reached>> {
    let chunk = scan.stage().chunk as usize;
    let queries = scan.queries(head);
    chunks
        .iter()
        .enumerate()
        .map(|(index, &start)| {
            scan.visible(start).then(|| {
                let mut best = Reached {
                    score: f32::NEG_INFINITY,
                    rows: vec![f64::NEG_INFINITY; queries.len()],
                    closest: f32::INFINITY,
                };
                for position in start..start + chunk {
                    let products = scan.products(&queries, head, Branch::Right, index, position);
                    best.score = best.score.max(scan.reduced(&products));
                    best.rows.iter_mut().zip(products).for_each(|(row, product)| *row = row.max(product));
                }
                best
            })
        })
        .collect()
}
