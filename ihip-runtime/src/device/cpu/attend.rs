//! Attention of one query block, tile by tile of keys, with a running maximum (paper §3.2).
//!
//! The rows of all query heads of a key-value head that share a block list lie side by side in the columns of a panel, so that a tile's keys
//! and values are gathered and rotated once for all of them, and every step of the softmax works on whole rows.

use std::ops::Range;

use ihip_dsl::rope::KeyPosition;
use ihip_dsl::{AttendRope, PrunedLayer};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cache::LayerView;
use super::linear::exp;
use super::product::{NARROW, Rows, WIDE, product};
use super::queries::Queries;
use super::select::BlockList;

/// Keys of a tile.
const TILE: usize = 128;

/// A key and the rows of the query block that see it.
#[derive(Clone, Debug)]
pub(super) struct Key {
    /// Where it lies in the cache.
    token: usize,
    /// Where it is rotated to.
    position: KeyPosition,
    /// Rows that see it.
    rows: Range<usize>,
}

/// The keys that a query block attends to.
pub(super) enum Keys {
    /// Every key up to the last query's own, as it is cached.
    All,
    /// These.
    Kept(Vec<Key>),
}

impl Keys {
    /// Blocks of `list`, sinks and window of the query block that stands at `positions`, in this order. Keys that
    /// no row sees are left out.
    pub(super) fn of_block(layer: &PrunedLayer, list: &BlockList, positions: Range<usize>, trained: usize) -> Self {
        let first_query = positions.start;
        let selected = list.blocks[..list.count].iter().flat_map(|left| *left..left + layer.block);
        let selected = selected.enumerate().map(|(number, token)| (token, layer.sink + number));
        let sinks = (0..layer.sink).map(|token| (token, token));
        // A query sees these once they have left its window, and window keys while they are in it.
        let mut kept: Vec<Key> = selected
            .chain(sinks)
            .filter(|(token, _)| token + layer.window < positions.end)
            .map(|(token, packed)| {
                let rows = (token + layer.window).saturating_sub(first_query)..positions.len();
                Key { token, position: layer.key_position(token, packed, &positions, list.count, trained), rows }
            })
            .collect();
        let window = (first_query + 1).saturating_sub(layer.window)..positions.end;
        kept.extend(window.map(|token| Key {
            token,
            position: if layer.attend_rope == AttendRope::None { KeyPosition::Cached } else { KeyPosition::At(token) },
            rows: token.saturating_sub(first_query)..(token + layer.window - first_query).min(positions.len()),
        }));
        Self::Kept(kept)
    }
}

/// The attention of one call in one layer.
pub(super) struct Attention<'a> {
    pub(super) arch: Arch,
    pub(super) queries: &'a Queries<'a>,
    pub(super) cached: LayerView<'a>,
}

impl Attention<'_> {
    /// Attends with the rows `rows` of the call, the heads of each ranking to its own of `keys`; `out` is
    /// `[rows, heads · head_dim]` of these rows.
    pub(super) fn block(&self, rows: &Range<usize>, keys: &[Keys], out: &mut [f32]) {
        let (heads, head_dim) = (self.queries.heads(), self.queries.head_dim());
        let shared = heads / keys.len();
        // Heads that read the same keys of the same key-value head.
        let together = shared.min(self.cached.group(heads));
        let outputs: Vec<Vec<f32>> = (0..heads / together)
            .into_par_iter()
            .map(|unit| {
                let unit = unit * together..(unit + 1) * together;
                let keys = &keys[unit.start / shared];
                if rows.len() * together <= NARROW {
                    self.heads::<NARROW>(unit, rows, keys)
                } else {
                    self.heads::<WIDE>(unit, rows, keys)
                }
            })
            .collect();
        // Each is `[heads, rows, head_dim]`.
        for (head, values) in outputs.iter().flat_map(|output| output.chunks_exact(rows.len() * head_dim)).enumerate() {
            for (row, values) in values.chunks_exact(head_dim).enumerate() {
                out[(row * self.queries.heads() + head) * head_dim..][..head_dim].copy_from_slice(values);
            }
        }
    }

    /// Attends with some heads of a group.
    fn heads<const W: usize>(&self, heads: Range<usize>, rows: &Range<usize>, keys: &Keys) -> Vec<f32> {
        let kv_head = heads.start / self.cached.group(self.queries.heads());
        let head_dim = self.queries.head_dim();
        let lanes = heads.len() * rows.len();
        let mut panels: Vec<Panel<W>> =
            (0..lanes).step_by(W).map(|first| self.panel(heads.start, rows, first..(first + W).min(lanes))).collect();
        let mut weights = vec![[0.0; W]; TILE];
        let (key_reader, value_reader) = (self.cached.keys(kv_head), self.cached.values(kv_head));
        let mut values = Vec::with_capacity(TILE * head_dim);
        match keys {
            Keys::All => {
                let positions = self.queries.position(rows.start)..self.queries.position(rows.end);
                for first in (0..positions.end).step_by(TILE) {
                    let tokens = first..(first + TILE).min(positions.end);
                    let seen = tokens.clone().map(|token| token.saturating_sub(positions.start)..rows.len());
                    // Keys are multiplied row by row where they lie; values column by column, for which they lie together.
                    let mut keys: [&[f32]; TILE] = [&[]; TILE];
                    values.clear();
                    for (key, token) in keys.iter_mut().zip(tokens.clone()) {
                        *key = key_reader.row(token);
                        values.extend_from_slice(value_reader.row(token));
                    }
                    let tile = Tile { keys: &keys[..tokens.len()], values: &values, head_dim };
                    for panel in &mut panels {
                        panel.attend(self.arch, &tile, seen.clone(), rows.len(), &mut weights);
                    }
                }
            }
            Keys::Kept(kept) => {
                let mut placed = Vec::with_capacity(TILE * head_dim);
                for kept in kept.chunks(TILE) {
                    placed.clear();
                    values.clear();
                    for key in kept {
                        let start = placed.len();
                        placed.extend_from_slice(key_reader.row(key.token));
                        values.extend_from_slice(value_reader.row(key.token));
                        self.queries.rope().place(&mut placed[start..], key.position);
                    }
                    let mut keys: [&[f32]; TILE] = [&[]; TILE];
                    keys.iter_mut().zip(placed.chunks_exact(head_dim)).for_each(|(key, placed)| *key = placed);
                    let tile = Tile { keys: &keys[..kept.len()], values: &values, head_dim };
                    let seen = kept.iter().map(|key| key.rows.clone());
                    for panel in &mut panels {
                        panel.attend(self.arch, &tile, seen.clone(), rows.len(), &mut weights);
                    }
                }
            }
        }
        let mut out = vec![0.0; lanes * head_dim];
        for (panel, out) in panels.iter().zip(out.chunks_mut(W * head_dim)) {
            panel.write(head_dim, out);
        }
        out
    }

    /// Queries of lanes `lanes`: lane `l` is row `l % rows` of head `first_head + l / rows`.
    fn panel<const W: usize>(&self, first_head: usize, rows: &Range<usize>, lanes: Range<usize>) -> Panel<W> {
        let head_dim = self.queries.head_dim();
        let mut panel = Panel {
            queries: vec![0.0; head_dim * W],
            rows: [0; W],
            largest: [f32::NEG_INFINITY; W],
            total: [0.0; W],
            sums: vec![[0.0; W]; head_dim],
        };
        let mut query = vec![0.0; head_dim];
        for (column, lane) in lanes.enumerate() {
            let (head, row) = (first_head + lane / rows.len(), lane % rows.len());
            self.queries.head_at_true_position(rows.start + row, head, &mut query);
            for (element, value) in query.iter().enumerate() {
                panel.queries[element * W + column] = *value;
            }
            panel.rows[column] = row;
        }
        panel
    }
}

/// Keys and values that are attended to together.
struct Tile<'a> {
    keys: &'a [&'a [f32]],
    /// `[keys][head_dim]`.
    values: &'a [f32],
    head_dim: usize,
}

/// The softmax of `W` rows on its way.
struct Panel<const W: usize> {
    /// `[head_dim][W]`.
    queries: Vec<f32>,
    /// Row of the query block that each column is.
    rows: [usize; W],
    /// Largest logit so far.
    largest: [f32; W],
    /// Sum of weights so far, relative to the largest logit.
    total: [f32; W],
    /// Weighted sums of values so far, `[head_dim]`.
    sums: Vec<[f32; W]>,
}

impl<const W: usize> Panel<W> {
    /// Takes the keys of a tile in; `seen` are the rows that see each of them, of `block_rows` in the block.
    fn attend(
        &mut self,
        arch: Arch,
        tile: &Tile<'_>,
        seen: impl Iterator<Item = Range<usize>>,
        block_rows: usize,
        weights: &mut [[f32; W]],
    ) {
        let count = tile.keys.len();
        let weights = &mut weights[..count];
        let keys = Rows { step: 1, depth: tile.head_dim, range: 0..count, row: |key| tile.keys[key] };
        product::<W, _, _>(arch, keys, &self.queries, |key, logits| weights[key] = *logits);
        for (logits, seen) in weights.iter_mut().zip(seen) {
            if seen != (0..block_rows) {
                for (logit, row) in logits.iter_mut().zip(&self.rows) {
                    if !seen.contains(row) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }

        let (largest, total) = (&mut self.largest, &mut self.total);
        let scale = arch.dispatch(Soften { logits: weights, largest, total });

        let sums = &mut self.sums;
        let values =
            Rows { step: tile.head_dim, depth: count, range: 0..tile.head_dim, row: |element| &tile.values[element..] };
        product::<W, _, _>(arch, values, weights.as_flattened(), |element, added| {
            for ((sum, added), scale) in sums[element].iter_mut().zip(added).zip(&scale) {
                *sum = *sum * scale + added;
            }
        });
    }

    /// Writes the averages, `[columns][head_dim]`; 0 for a row that saw no key.
    fn write(&self, head_dim: usize, out: &mut [f32]) {
        for (column, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let total = self.total[column];
            for (out, sums) in out.iter_mut().zip(&self.sums) {
                *out = if total > 0.0 { sums[column] / total } else { 0.0 };
            }
        }
    }
}

/// Turns logits into weights relative to the new largest logit; gives what older sums have to be multiplied by.
struct Soften<'a, const W: usize> {
    logits: &'a mut [[f32; W]],
    largest: &'a mut [f32; W],
    total: &'a mut [f32; W],
}

impl<const W: usize> WithSimd for Soften<'_, W> {
    type Output = [f32; W];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> [f32; W] {
        let mut largest = *self.largest;
        for logits in self.logits.iter() {
            for (largest, logit) in largest.iter_mut().zip(logits) {
                *largest = if *logit > *largest { *logit } else { *largest };
            }
        }
        // A row that has seen nothing yet keeps weights of 0: −∞ − 0 is −∞, where −∞ − (−∞) would be no number.
        let mut shift = largest;
        for shift in &mut shift {
            *shift = if *shift == f32::NEG_INFINITY { 0.0 } else { *shift };
        }
        let mut scale = [0.0; W];
        for ((scale, old), shift) in scale.iter_mut().zip(&*self.largest).zip(&shift) {
            *scale = exp(old - shift);
        }
        let mut total = *self.total;
        for (total, scale) in total.iter_mut().zip(&scale) {
            *total *= scale;
        }
        for logits in self.logits {
            for ((logit, shift), total) in logits.iter_mut().zip(&shift).zip(&mut total) {
                *logit = exp(*logit - shift);
                *total += *logit;
            }
        }
        *self.largest = largest;
        *self.total = total;
        scale
    }
}
