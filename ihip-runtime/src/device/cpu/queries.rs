//! The queries of a step, as scan and attention read them.

use std::ops::Range;

use ihip_dsl::rope::RopeTable;

/// `[rows, heads, head_dim]`, scaled; rotated at their true positions where the keys are cached that way.
pub(super) struct Queries<'a> {
    values: Vec<f32>,
    heads: usize,
    head_dim: usize,
    first_position: usize,
    rotated: bool,
    rope: &'a RopeTable,
}

impl<'a> Queries<'a> {
    /// Takes the queries out of `qkv`, whose rows have `columns` elements.
    pub(super) fn new(
        qkv: &[f32],
        columns: usize,
        (heads, head_dim): (usize, usize),
        scale: f32,
        first_position: usize,
        rotated: bool,
        rope: &'a RopeTable,
    ) -> Self {
        let rows = qkv.chunks_exact(columns);
        let values = rows.flat_map(|row| row[..heads * head_dim].iter().map(|value| value * scale)).collect();
        let mut queries = Self { values, heads, head_dim, first_position, rotated, rope };
        if rotated {
            for (index, head) in queries.values.chunks_exact_mut(head_dim).enumerate() {
                rope.rotate(head, first_position + index / heads);
            }
        }
        queries
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.values.len() / (self.heads * self.head_dim)
    }

    /// Query heads.
    pub(super) fn heads(&self) -> usize {
        self.heads
    }

    /// Elements of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Rotary table of the request.
    pub(super) fn rope(&self) -> &'a RopeTable {
        self.rope
    }

    /// Position of a row.
    pub(super) fn position(&self, row: usize) -> usize {
        self.first_position + row
    }

    /// The rows of query block `block`, counted from the first row; the last may be ragged.
    pub(super) fn block(&self, block: usize, query_block: usize) -> Range<usize> {
        block * query_block..((block + 1) * query_block).min(self.rows())
    }

    /// One head of a row.
    pub(super) fn head(&self, row: usize, head: usize) -> &[f32] {
        &self.values[(row * self.heads + head) * self.head_dim..][..self.head_dim]
    }

    /// One head of a row, rotated at its true position.
    pub(super) fn head_at_true_position(&self, row: usize, head: usize, into: &mut [f32]) {
        into.copy_from_slice(self.head(row, head));
        if !self.rotated {
            self.rope.rotate(into, self.position(row));
        }
    }
}
