//! The one product of the CPU device: rows times a panel.
//!
//! Linear maps, scan and attention are all of the form `C[r][j] = Σ_k A[r][k] · B[k][j]`, with a *panel* `B` of 16 or
//! 32 columns whose rows lie one after another and rows `A` that lie anywhere. An element of `C` is one chain of
//! multiply-adds over `k`, whatever it is computed together with: a row's result is the same, bit for bit, alone and
//! among a thousand. A general matrix product does not promise that, which is why none is used here.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Columns of a wide panel.
pub(super) const WIDE: usize = 32;
/// Columns of a narrow panel.
pub(super) const NARROW: usize = 16;

/// The left operand: row `r` is `data[start(r)]`, `data[start(r) + step]`, …, `depth` elements.
pub(super) struct Rows<'a, F> {
    /// What the rows lie in.
    pub(super) data: &'a [f32],
    /// Elements between two of a row.
    pub(super) step: usize,
    /// Elements of a row.
    pub(super) depth: usize,
    /// Which rows.
    pub(super) range: Range<usize>,
    /// Where a row starts.
    pub(super) start: F,
}

impl<F: Fn(usize) -> usize> Rows<'_, F> {
    /// Starts of `R` rows from `first` on, all of which lie within `data`.
    #[inline(always)]
    fn pointers<const R: usize>(&self, first: usize) -> [*const f32; R] {
        std::array::from_fn(|offset| {
            let start = (self.start)(first + offset);
            assert!(start + (self.depth - 1) * self.step < self.data.len());
            &raw const self.data[start]
        })
    }
}

/// Computes `rows · panel` and hands every row of the result to `store`.
///
/// # Panics
/// Where a row does not lie in its data, or the panel has less than `depth` rows.
pub(super) fn product<const W: usize, F, G>(arch: Arch, rows: Rows<'_, F>, panel: &[f32], store: G)
where
    F: Fn(usize) -> usize,
    G: FnMut(usize, &[f32; W]),
{
    arch.dispatch(Product::<W, F, G> { rows, panel, store });
}

struct Product<'a, const W: usize, F, G> {
    rows: Rows<'a, F>,
    panel: &'a [f32],
    store: G,
}

impl<const W: usize, F, G> WithSimd for Product<'_, W, F, G>
where
    F: Fn(usize) -> usize,
    G: FnMut(usize, &[f32; W]),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let store = &mut self.store;
        for_each_tile::<S, W, F, _>(simd, &self.rows, self.panel, Stored { store });
    }
}

/// The largest element of every row of `rows · panel`, handed to `store`.
///
/// # Panics
/// Where a row does not lie in its data, or the panel has less than `depth` rows.
pub(super) fn row_max<const W: usize, F, G>(arch: Arch, rows: Rows<'_, F>, panel: &[f32], store: G)
where
    F: Fn(usize) -> usize,
    G: FnMut(usize, f32),
{
    arch.dispatch(RowMax::<W, F, G> { rows, panel, store });
}

struct RowMax<'a, const W: usize, F, G> {
    rows: Rows<'a, F>,
    panel: &'a [f32],
    store: G,
}

impl<const W: usize, F, G> WithSimd for RowMax<'_, W, F, G>
where
    F: Fn(usize) -> usize,
    G: FnMut(usize, f32),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let store = &mut self.store;
        for_each_tile::<S, W, F, _>(simd, &self.rows, self.panel, Largest { store });
    }
}

/// What becomes of a row of the result.
trait Sink {
    fn row<S: Simd, const N: usize>(&mut self, simd: S, row: usize, vectors: [S::f32s; N]);
}

struct Stored<'a, const W: usize, G: FnMut(usize, &[f32; W])> {
    store: &'a mut G,
}

impl<const W: usize, G: FnMut(usize, &[f32; W])> Sink for Stored<'_, W, G> {
    #[inline(always)]
    fn row<S: Simd, const N: usize>(&mut self, simd: S, row: usize, vectors: [S::f32s; N]) {
        let mut values = [0.0; W];
        for (part, vector) in values.chunks_exact_mut(S::F32_LANES).zip(vectors) {
            simd.partial_store_f32s(part, vector);
        }
        (self.store)(row, &values);
    }
}

struct Largest<'a, G: FnMut(usize, f32)> {
    store: &'a mut G,
}

impl<G: FnMut(usize, f32)> Sink for Largest<'_, G> {
    #[inline(always)]
    fn row<S: Simd, const N: usize>(&mut self, simd: S, row: usize, vectors: [S::f32s; N]) {
        let mut largest = vectors[0];
        for vector in &vectors[1..] {
            largest = simd.max_f32s(largest, *vector);
        }
        (self.store)(row, simd.reduce_max_f32s(largest));
    }
}

/// Picks the tile that fills the registers: `R` rows of `N` vectors, `N · lanes = W`.
#[inline(always)]
fn for_each_tile<S: Simd, const W: usize, F: Fn(usize) -> usize, K: Sink>(
    simd: S,
    rows: &Rows<'_, F>,
    panel: &[f32],
    mut sink: K,
) {
    if rows.depth == 0 {
        return;
    }
    assert!(panel.len() >= rows.depth * W);
    match (W, S::F32_LANES) {
        (WIDE, 16) => tiles::<S, W, 12, 2, F, K>(simd, rows, panel, &mut sink),
        (WIDE, 8) => tiles::<S, W, 3, 4, F, K>(simd, rows, panel, &mut sink),
        (WIDE, 4) => tiles::<S, W, 3, 8, F, K>(simd, rows, panel, &mut sink),
        (WIDE, 1) => tiles::<S, W, 1, 32, F, K>(simd, rows, panel, &mut sink),
        (NARROW, 16) => tiles::<S, W, 12, 1, F, K>(simd, rows, panel, &mut sink),
        (NARROW, 8) => tiles::<S, W, 6, 2, F, K>(simd, rows, panel, &mut sink),
        (NARROW, 4) => tiles::<S, W, 6, 4, F, K>(simd, rows, panel, &mut sink),
        (NARROW, 1) => tiles::<S, W, 1, 16, F, K>(simd, rows, panel, &mut sink),
        (width, lanes) => unreachable!("a panel of {width} columns in vectors of {lanes}"),
    }
}

#[inline(always)]
fn tiles<S: Simd, const W: usize, const R: usize, const N: usize, F, K>(
    simd: S,
    rows: &Rows<'_, F>,
    panel: &[f32],
    sink: &mut K,
) where
    F: Fn(usize) -> usize,
    K: Sink,
{
    assert_eq!(N * S::F32_LANES, W);
    let mut row = rows.range.start;
    while row + R <= rows.range.end {
        tile::<S, W, R, N, F, K>(simd, rows, row, panel, sink);
        row += R;
    }
    while row + 3 <= rows.range.end {
        tile::<S, W, 3, N, F, K>(simd, rows, row, panel, sink);
        row += 3;
    }
    while row < rows.range.end {
        tile::<S, W, 1, N, F, K>(simd, rows, row, panel, sink);
        row += 1;
    }
}

#[inline(always)]
fn tile<S: Simd, const W: usize, const R: usize, const N: usize, F, K>(
    simd: S,
    rows: &Rows<'_, F>,
    first: usize,
    panel: &[f32],
    sink: &mut K,
) where
    F: Fn(usize) -> usize,
    K: Sink,
{
    let pointers = rows.pointers::<R>(first);
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for k in 0..rows.depth {
        // SAFETY: `for_each_tile` checked that the panel has `depth` rows of `W = N · lanes` elements, so this vector
        // ends inside of it; unaligned reads have no further demands.
        let right: [S::f32s; N] = std::array::from_fn(|n| unsafe {
            panel.as_ptr().add(k * W + n * S::F32_LANES).cast::<S::f32s>().read_unaligned()
        });
        for (sums, pointer) in sums.iter_mut().zip(pointers) {
            // SAFETY: `pointers` checked that element `depth − 1` of the row lies in its data, and k < depth.
            let left = simd.splat_f32s(unsafe { *pointer.add(k * rows.step) });
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = simd.mul_add_e_f32s(left, right, *sum);
            }
        }
    }
    for (offset, sums) in sums.into_iter().enumerate() {
        sink.row(simd, first + offset, sums);
    }
}
