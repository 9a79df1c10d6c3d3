//! Attention over sinks, selected blocks and window, and over everything (paper §3.2).

use std::ops::Range;

use super::rope::{self, Group, Packing, Span};
use super::tensors::dot;
use super::{BlockList, Problem, Tensors, query_rows};

/// Block sparse attention of every query block, each ranking's heads over its own list;
/// `[queries, query_heads, head_dim]`.
#[must_use]
pub fn pruned(tensors: &Tensors<'_>, lists: &[BlockList]) -> Vec<f32> {
    let queries = tensors.query_count();
    let mut out = Vec::new();
    for (block, lists) in lists.chunks(tensors.rankings()).enumerate() {
        let rows = query_rows(block, tensors.pruning.query_block as usize, queries);
        out.extend(pruned_block(tensors, rows, lists));
    }
    out
}

/// Block sparse attention of the query block `rows`, with a list for each ranking.
fn pruned_block(tensors: &Tensors<'_>, rows: Range<usize>, lists: &[BlockList]) -> Vec<f32> {
    let candidates: Vec<Vec<Candidate>> = lists.iter().map(|list| candidates(tensors, rows.clone(), list)).collect();
    let mut out = Vec::new();
    for row in rows {
        for (ranking, candidates) in candidates.iter().enumerate() {
            for head in tensors.heads(ranking) {
                out.extend(pruned_row(tensors, row, head, candidates));
            }
        }
    }
    out
}

/// Attention of one query of one head.
fn pruned_row(tensors: &Tensors<'_>, row: usize, head: usize, candidates: &[Candidate]) -> Vec<f32> {
    let (position, window) = (tensors.position(row), tensors.pruning.window as usize);
    // Sinks and selected tokens are seen once they have left the window, window tokens while they are in it, so
    // that no key is counted twice.
    let visible: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| match (position.checked_sub(candidate.position), candidate.group) {
            (None, _) => false,
            (Some(distance), Group::Window) => distance < window,
            (Some(distance), _) => distance >= window,
        })
        .collect();
    let kv_head = tensors.kv_head(head);
    let query = match tensors.pruning.rope.rotated_cache() {
        true => tensors.query(row, head).to_vec(),
        false => rope::rotate(tensors.query(row, head), position, tensors.frequencies),
    };
    let logits: Vec<f64> = visible.iter().map(|candidate| dot(&query, &candidate.keys[kv_head])).collect();
    let values = visible.iter().map(|candidate| tensors.value(candidate.position, kv_head));
    softmax_average(&logits, values, query.len())
}

/// A key that some query of a block may see.
struct Candidate {
    position: usize,
    group: Group,
    /// The key of every key-value head, rotated where its group and the mode put it.
    keys: Vec<Vec<f64>>,
}

/// The three groups of keys that the heads of one ranking of the query block `rows` read, in the order selected, sinks, window.
fn candidates(tensors: &Tensors<'_>, rows: Range<usize>, list: &BlockList) -> Vec<Candidate> {
    let pruning = tensors.pruning;
    let (sink, window) = (pruning.sink as usize, pruning.window as usize);
    let block = pruning.stages.last().map_or(1, |last| last.chunk as usize);
    let queries = tensors.positions(&rows);

    let selected = list.blocks[..list.count]
        .iter()
        .flat_map(|&start| start..start + block)
        .enumerate()
        .map(|(token, position)| (position, Group::Selected(token)));
    let sinks = (0..sink).map(|token| (token, Group::Sink(token)));
    let recent = ((queries.start + 1).saturating_sub(window)..queries.end).map(|position| (position, Group::Window));

    let span = Span { queries: queries.clone(), trained: tensors.trained };
    let packing = Packing { span, window, sink, selected: list.count * block };
    selected
        .chain(sinks)
        .chain(recent)
        .filter(|&(position, _)| position < queries.end)
        .map(|(position, group)| {
            let rotary = rope::attend_key(pruning.rope.attend, group, position, &packing);
            let keys = (0..tensors.kv_heads())
                .map(|head| {
                    let key = tensors.key(position, head);
                    if rotary.is_empty() { key.to_vec() } else { rope::blend(key, &rotary, tensors.frequencies) }
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
    tensors.hold_in_cache(problem.kv_type);
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
