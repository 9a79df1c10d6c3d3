//! Rows of a request, read where they are.

use std::cell::Cell;

use super::Kind;
use super::page::PageId;
use super::region::Region;
use super::store::{Sequence, Store};
use super::traffic::{Reads, Tally};

/// Reads keys, or values, of one head in one layer for one task, and counts where they were.
pub struct Reader<'a> {
    region: &'a Region,
    pages: &'a [PageId],
    tally: &'a Tally,
    /// Elements of a slot before the rows of the head.
    head: usize,
    head_dim: usize,
    /// Tokens of a page are `1 << shift`.
    shift: u32,
    reads: Cell<Reads>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        store: &'a Store,
        sequence: &'a Sequence,
        (layer, kind, head): (usize, Kind, usize),
        tally: &'a Tally,
    ) -> Self {
        let shape = store.shape();
        Self {
            region: store.region(layer, kind),
            pages: sequence.pages(),
            tally,
            head: head * shape.page * shape.head_dim,
            head_dim: shape.head_dim,
            shift: shape.page.trailing_zeros(),
            reads: Cell::default(),
        }
    }

    /// The row of a token. One on the host is read in place, and its page comes to the GPU after the step.
    ///
    /// # Panics
    /// Where the request has no page for it.
    #[inline]
    #[must_use]
    pub fn row(&self, token: usize) -> &'a [f32] {
        let page = self.pages[token >> self.shift];
        let in_page = token - (token >> self.shift << self.shift);
        let (slot, is_hit) = self.region.page(page);
        let Reads { hits, misses } = self.reads.get();
        self.reads.set(Reads { hits: hits + u64::from(is_hit), misses: misses + u64::from(!is_hit) });
        let first = self.head + in_page * self.head_dim;
        &slot[first..first + self.head_dim]
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.tally.add(self.reads.get());
    }
}
