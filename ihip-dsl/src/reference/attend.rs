//! Attention over sinks, selected blocks and window, and over everything (paper §3.2).

use std::ops::Range;

use super::rope::{self, Group, Packing};
use super::{BlockList, Problem, Tensors, dot, query_rows};

/// Block sparse attention of every query block, each over its own list; `[queries, query_heads, head_dim]`.
#[must_use]
pub fn pruned(tensors: &Tensors<'_>, lists: &[BlockList]) -> Vec<f32> {
    let queries = tensors.query_count();
    let mut out = Vec::new();
    for (block, list) in lists.iter().enumerate() {
        let rows = query_rows(block, tensors.pruning.query_block as usize, queries);
        out.extend(pruned_block(tensors, rows, list));
    }
    out
}

/// Block sparse attention of the query block `rows`.
fn pruned_block(tensors: &Tensors<'_>, rows: Range<usize>, list: &BlockList) -> Vec<f32> {
    let pruning = tensors.pruning;
    let window = pruning.window as usize;
    let candidates = candidates(tensors, rows.clone(), list);

    let mut out = Vec::new();
    for row in rows {
        let position = tensors.position(row);
        // Sinks and selected tokens are seen once they have left the window, window tokens while they are in it, so
        // that no key is counted twice.
        let visible: Vec<&Candidate> = candidates
            .iter()
            .filter(|candidate| match (position.checked_sub(candidate.position), candidate.group) {
                (None, _) => false,
                (Some(distance), Group::Window(_)) => distance < window,
                (Some(distance), _) => distance >= window,
            })
            .collect();
        for head in 0..tensors.query_heads() {
            let kv_head = tensors.kv_head(head);
            let query = match pruning.rope.rotated_cache() {
                true => tensors.query(row, head).to_vec(),
                false => rope::rotate(tensors.query(row, head), position, tensors.frequencies),
            };
            let logits: Vec<f64> = visible.iter().map(|candidate| dot(&query, &candidate.keys[kv_head])).collect();
            let values = visible.iter().map(|candidate| tensors.value(candidate.position, kv_head));
            out.extend(softmax_average(&logits, values, query.len()));
        }
    }
    out
}

/// A key that some query of a block may see.
struct Candidate {
    position: usize,
    group: Group,
    /// The key of every key-value head, rotated where its group and the mode put it.
    keys: Vec<Vec<f64>>,
}

/// The three groups of keys that the query block `rows` reads, in the order selected, sinks, window.
fn candidates(tensors: &Tensors<'_>, rows: Range<usize>, list: &BlockList) -> Vec<Candidate> {
    let pruning = tensors.pruning;
    let (sink, window) = (pruning.sink as usize, pruning.window as usize);
    let block = pruning.stages.last().map_or(1, |last| last.chunk as usize);
    let first_position = tensors.position(rows.start);
    let last_position = tensors.position(rows.end - 1);

    let selected = list.blocks[..list.count]
        .iter()
        .flat_map(|&start| start..start + block)
        .enumerate()
        .map(|(token, position)| (position, Group::Selected(token)));
    let sinks = (0..sink).map(|token| (token, Group::Sink(token)));
    let recent = ((first_position + 1).saturating_sub(window)..=last_position)
        .map(|position| (position, Group::Window(position)));

    let packing = Packing { first_position, window, sink, selected: list.count * block };
    selected
        .chain(sinks)
        .chain(recent)
        .filter(|&(position, _)| position <= last_position)
        .map(|(position, group)| {
            let rotary = rope::attend_key(pruning.rope.attend, group, packing);
            let keys = (0..tensors.kv_heads)
                .map(|head| {
                    let key = tensors.key(position, head);
                    match rotary {
                        Some(rotary) => rope::rotate(key, rotary, tensors.frequencies),
                        None => key.to_vec(),
                    }
                })
                .collect();
            Candidate { position, group, keys }
        })
        .collect()
}

/// Causal attention of every query over every key, rotated at true positions: what a model without pruning does.
/// `[queries, query_heads, head_dim]`. Of the problem's description nothing is read.
///
/// # Panics
/// Where the slices do not have the shapes that [`Problem`] states.
#[must_use]
pub fn dense(problem: &Problem<'_>) -> Vec<f32> {
    let mut tensors = Tensors::unrotated(problem);
    tensors.rotate_at_true_positions();
    let mut out = Vec::new();
    for row in 0..tensors.query_count() {
        let visible = 0..=tensors.position(row);
        for head in 0..tensors.query_heads() {
            let kv_head = tensors.kv_head(head);
            let query = tensors.query(row, head);
            let logits: Vec<f64> = visible.clone().map(|position| dot(query, tensors.key(position, kv_head))).collect();
            let values = visible.clone().map(|position| tensors.value(position, kv_head));
            out.extend(softmax_average(&logits, values, query.len()));
        }
    }
    out
}

/// The average of `values`, weighted by the softmax of `logits`; 0 where there are none.
fn softmax_average<'a>(logits: &[f64], values: impl Iterator<Item = &'a [f64]>, head_dim: usize) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = vec![0.0; head_dim];
    let mut total = 0.0;
    for (logit, value) in logits.iter().zip(values) {
        let weight = (logit - largest).exp();
        total += weight;
        for (sum, v) in sum.iter_mut().zip(value) {
            *sum += weight * v;
        }
    }
    sum.into_iter().map(|sum| if total > 0.0 { (sum / total) as f32 } else { 0.0 }).collect()
}
