//! The inputs of a call as kernels see them.

use std::ops::Range;

use super::{Problem, cache, rope};
use crate::{KvType, LayerPruning};

/// A problem's tensors as the kernels see them: in f64, queries scaled, and everything rotated at true positions if
/// that is how the layer caches its keys.
pub struct Tensors<'a> {
    /// What the layer does.
    pub pruning: &'a LayerPruning,
    /// Keys that the scan's grid is laid out for.
    pub t_max: usize,
    /// Rotary inverse frequencies.
    pub frequencies: &'a [f64],
    /// Positions that the model was trained on.
    pub trained: usize,
    first_position: usize,
    query_heads: usize,
    kv_heads: usize,
    rankings: usize,
    head_dim: usize,
    queries: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
}

impl<'a> Tensors<'a> {
    /// Takes a problem in.
    ///
    /// # Panics
    /// Where the slices do not have the shapes that [`Problem`] states.
    #[must_use]
    pub fn new(problem: &Problem<'a>) -> Self {
        let mut tensors = Self::unrotated(problem);
        if problem.pruning.rope.rotated_cache() {
            tensors.rotate_at_true_positions();
        }
        tensors.hold_in_cache(problem.kv_type);
        tensors
    }

    pub(super) fn unrotated(problem: &Problem<'a>) -> Self {
        let tensors = Self {
            pruning: problem.pruning,
            t_max: problem.t_max,
            frequencies: problem.frequencies,
            trained: problem.trained,
            first_position: problem.first_position,
            query_heads: problem.query_heads,
            kv_heads: problem.kv_heads,
            rankings: problem.rankings(),
            head_dim: problem.head_dim,
            queries: problem.queries.iter().map(|&q| f64::from(q) * f64::from(problem.query_scale)).collect(),
            keys: problem.keys.iter().map(|&k| f64::from(k)).collect(),
            values: problem.values.iter().map(|&v| f64::from(v)).collect(),
        };
        let end = tensors.first_position + tensors.query_count();
        assert_eq!(tensors.frequencies.len() * 2, tensors.head_dim);
        assert_eq!(tensors.query_heads % tensors.kv_heads, 0);
        assert_eq!(tensors.queries.len() % (tensors.query_heads * tensors.head_dim), 0);
        assert_eq!(tensors.keys.len() % (tensors.kv_heads * tensors.head_dim), 0);
        assert_eq!(tensors.keys.len(), tensors.values.len());
        assert!(end * tensors.kv_heads * tensors.head_dim <= tensors.keys.len());
        assert!(end <= tensors.t_max);
        tensors
    }

    pub(super) fn rotate_at_true_positions(&mut self) {
        let (queries, keys) = (self.query_heads * self.head_dim, self.kv_heads * self.head_dim);
        for (row, token) in self.queries.chunks_mut(queries).enumerate() {
            for head in token.chunks_mut(self.head_dim) {
                let rotated = rope::rotate(head, self.first_position + row, self.frequencies);
                head.copy_from_slice(&rotated);
            }
        }
        for (position, token) in self.keys.chunks_mut(keys).enumerate() {
            for head in token.chunks_mut(self.head_dim) {
                let rotated = rope::rotate(head, position, self.frequencies);
                head.copy_from_slice(&rotated);
            }
        }
    }

    /// Leaves of keys and values what the cache holds of them.
    pub(super) fn hold_in_cache(&mut self, kv_type: KvType) {
        let rows = self.keys.chunks_mut(self.head_dim).chain(self.values.chunks_mut(self.head_dim));
        rows.for_each(|row| cache::hold(kv_type, row));
    }

    /// Queries of the call.
    #[must_use]
    pub fn query_count(&self) -> usize {
        self.queries.len() / (self.query_heads * self.head_dim)
    }

    /// Query heads.
    #[must_use]
    pub fn query_heads(&self) -> usize {
        self.query_heads
    }

    /// The key-value head that query head `head` reads.
    #[must_use]
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.query_heads / self.kv_heads)
    }

    /// Key-value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// The query heads that read key-value head `head`.
    #[must_use]
    pub fn group(&self, head: usize) -> Range<usize> {
        let group = self.query_heads / self.kv_heads;
        head * group..(head + 1) * group
    }

    /// Rankings of a query block, `R`.
    #[must_use]
    pub fn rankings(&self) -> usize {
        self.rankings
    }

    /// The query heads that share ranking `ranking`: they follow one another.
    #[must_use]
    pub fn heads(&self, ranking: usize) -> Range<usize> {
        let shared = self.query_heads / self.rankings;
        ranking * shared..(ranking + 1) * shared
    }

    /// Positions of the queries `rows`.
    #[must_use]
    pub fn positions(&self, rows: &Range<usize>) -> Range<usize> {
        self.first_position + rows.start..self.first_position + rows.end
    }

    /// Position of query `row`.
    #[must_use]
    pub fn position(&self, row: usize) -> usize {
        self.first_position + row
    }

    /// Query `row` of query head `head`, scaled.
    #[must_use]
    pub fn query(&self, row: usize, head: usize) -> &[f64] {
        let start = (row * self.query_heads + head) * self.head_dim;
        &self.queries[start..start + self.head_dim]
    }

    /// The key at `position`, of key-value head `head`.
    #[must_use]
    pub fn key(&self, position: usize, head: usize) -> &[f64] {
        let start = (position * self.kv_heads + head) * self.head_dim;
        &self.keys[start..start + self.head_dim]
    }

    /// The value at `position`, of key-value head `head`.
    #[must_use]
    pub fn value(&self, position: usize, head: usize) -> &[f64] {
        let start = (position * self.kv_heads + head) * self.head_dim;
        &self.values[start..start + self.head_dim]
    }
}

/// Dot product.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
