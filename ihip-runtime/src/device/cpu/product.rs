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

/// The left operand: row `r` is `row(r)[0]`, `row(r)[step]`, …, `depth` elements.
pub(super) struct Rows<F> {
    /// Elements between two of a row.
    pub(super) step: usize,
    /// Elements of a row.
    pub(super) depth: usize,
    /// Which rows.
    pub(super) range: Range<usize>,
    /// What a row lies in, from its first element on.
    pub(super) row: F,
}

impl<'a, F: Fn(usize) -> &'a [f32]> Rows<F> {
    /// Starts of `R` rows from `first` on, all of which lie within their slices.
    #[inline(always)]
    fn pointers<const R: usize>(&self, first: usize) -> [*const f32; R] {
        std::array::from_fn(|offset| {
            let row = (self.row)(first + offset);
            assert!((self.depth - 1) * self.step < row.len());
            row.as_ptr()
        })
    }
}

/// Computes `rows · panel` and hands every row of the result to `store`.
///
/// # Panics
/// Where a row does not lie in its data, or the panel has less than `depth` rows.
pub(super) fn product<'a, const W: usize, F, G>(arch: Arch, rows: Rows<F>, panel: &[f32], store: G)
where
    F: Fn(usize) -> &'a [f32],
    G: FnMut(usize, &[f32; W]),
{
    arch.dispatch(Product::<'_, W, F, G> { rows, panel, store });
}

struct Product<'a, const W: usize, F, G> {
    rows: Rows<F>,
    panel: &'a [f32],
    store: G,
}

impl<'a, const W: usize, F, G> WithSimd for Product<'_, W, F, G>
where
    F: Fn(usize) -> &'a [f32],
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
pub(super) fn row_max<'a, const W: usize, F, G>(arch: Arch, rows: Rows<F>, panel: &[f32], store: G)
where
    F: Fn(usize) -> &'a [f32],
    G: FnMut(usize, f32),
{
    arch.dispatch(RowMax::<'_, W, F, G> { rows, panel, store });
}

struct RowMax<'a, const W: usize, F, G> {
    rows: Rows<F>,
    panel: &'a [f32],
    store: G,
}

impl<'a, const W: usize, F, G> WithSimd for RowMax<'_, W, F, G>
where
    F: Fn(usize) -> &'a [f32],
    G: FnMut(usize, f32),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let store = &mut self.store;
        for_each_tile::<S, W, F, _>(simd, &self.rows, self.panel, Largest { store });
    }
}

/// The product of every row with one vector, handed to `store`: what [`row_max`] would give for a panel of one column.
///
/// # Panics
/// Where a row does not lie in its data, its elements do not lie side by side, or the vector has another length.
pub(super) fn dots<'a, F, G>(arch: Arch, rows: Rows<F>, vector: &[f32], store: G)
where
    F: Fn(usize) -> &'a [f32],
    G: FnMut(usize, f32),
{
    arch.dispatch(Dots { rows, vector, store });
}

struct Dots<'a, F, G> {
    rows: Rows<F>,
    vector: &'a [f32],
    store: G,
}

impl<'a, F, G> WithSimd for Dots<'_, F, G>
where
    F: Fn(usize) -> &'a [f32],
    G: FnMut(usize, f32),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        assert!(self.rows.step == 1 && self.vector.len() == self.rows.depth);
        let (vectors, end) = S::as_simd_f32s(self.vector);
        for index in self.rows.range.clone() {
            let row = &(self.rows.row)(index)[..self.rows.depth];
            let (row, row_end) = S::as_simd_f32s(row);
            let mut sum = simd.mul_f32s(simd.partial_load_f32s(row_end), simd.partial_load_f32s(end));
            for (row, vector) in row.iter().zip(vectors) {
                sum = simd.mul_add_e_f32s(*row, *vector, sum);
            }
            (self.store)(index, simd.reduce_sum_f32s(sum));
        }
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

/// Picks the tile that fills the registers: as many rows as leave room for one
/// vector of each and one row of the panel besides the sums.
#[inline(always)]
fn for_each_tile<'a, S: Simd, const W: usize, F: Fn(usize) -> &'a [f32], K: Sink>(
    simd: S,
    rows: &Rows<F>,
    panel: &[f32],
    mut sink: K,
) {
    if rows.depth == 0 {
        return;
    }
    let sink = &mut sink;
    match (W / S::F32_LANES, S::F32_LANES) {
        (1, 16) => tiles::<S, W, 1, 12, F, K>(simd, rows, panel, sink),
        (2, 16) => tiles::<S, W, 2, 8, F, K>(simd, rows, panel, sink),
        (2, 8) => tiles::<S, W, 2, 4, F, K>(simd, rows, panel, sink),
        (4, 8) => tiles::<S, W, 4, 2, F, K>(simd, rows, panel, sink),
        (4, 4) => tiles::<S, W, 4, 4, F, K>(simd, rows, panel, sink),
        (8, 4) => tiles::<S, W, 8, 2, F, K>(simd, rows, panel, sink),
        (16, 1) => tiles::<S, W, 16, 1, F, K>(simd, rows, panel, sink),
        (32, 1) => tiles::<S, W, 32, 1, F, K>(simd, rows, panel, sink),
        (vectors, lanes) => unreachable!("a panel of {vectors} vectors of {lanes}"),
    }
}

/// Computes all rows in tiles of `R`, and what is left over in smaller ones.
#[inline(always)]
fn tiles<'a, S: Simd, const W: usize, const N: usize, const R: usize, F: Fn(usize) -> &'a [f32], K: Sink>(
    simd: S,
    rows: &Rows<F>,
    panel: &[f32],
    sink: &mut K,
) {
    let mut first = rows.range.start;
    if R >= 12 {
        first = tiles_of_12::<S, W, N, F, K>(simd, rows, first, panel, sink);
    }
    if R >= 8 {
        first = tiles_of_8::<S, W, N, F, K>(simd, rows, first, panel, sink);
    }
    if R >= 4 {
        first = tiles_of_4::<S, W, N, F, K>(simd, rows, first, panel, sink);
    }
    if R >= 2 {
        first = tiles_of_2::<S, W, N, F, K>(simd, rows, first, panel, sink);
    }
    tiles_of_1::<S, W, N, F, K>(simd, rows, first, panel, sink);
}

/// A function that computes tiles of so many rows from `first` on, and gives the first row left over. The sums of each
/// row are variables of their own: written as an array of rows they end up in memory, not in registers.
macro_rules! tiles_of {
    ($name:ident, $rows:literal, $($sums:ident $pointer:ident)*) => {
        #[inline(always)]
        fn $name<'a, S: Simd, const W: usize, const N: usize, F: Fn(usize) -> &'a [f32], K: Sink>(
            simd: S,
            rows: &Rows<F>,
            mut first: usize,
            panel: &[f32],
            sink: &mut K,
        ) -> usize {
            assert!(N * S::F32_LANES == W && panel.len() >= rows.depth * W);
            while (first..rows.range.end).len() >= $rows {
                let [$($pointer),*] = rows.pointers::<$rows>(first);
                $(let mut $sums = [simd.splat_f32s(0.0); N];)*
                let mut column = panel.as_ptr();
                // One offset for all rows leaves registers for their starts.
                let mut element = 0;
                for _ in 0..rows.depth {
                    // SAFETY: it was checked above that the panel has `depth` rows of `W = N · lanes` elements, so
                    // that all vectors of this one lie inside of it; they may be unaligned.
                    let right: [S::f32s; N] = unsafe { column.cast::<[S::f32s; N]>().read_unaligned() };
                    $(
                        // SAFETY: `pointers` checked that all `depth` elements of the row lie in its data.
                        let left = simd.splat_f32s(unsafe { $pointer.wrapping_add(element).read_unaligned() });
                        for (sum, right) in $sums.iter_mut().zip(right) {
                            *sum = simd.mul_add_e_f32s(left, right, *sum);
                        }
                    )*
                    column = column.wrapping_add(W);
                    element = rows.step.wrapping_add(element);
                }
                for (offset, sums) in [$($sums),*].into_iter().enumerate() {
                    sink.row(simd, first + offset, sums);
                }
                first += $rows;
            }
            first
        }
    };
}

tiles_of!(tiles_of_1, 1, a p);
tiles_of!(tiles_of_2, 2, a p b q);
tiles_of!(tiles_of_4, 4, a p b q c r d s);
tiles_of!(tiles_of_8, 8, a p b q c r d s e t f u g v h w);
tiles_of!(tiles_of_12, 12, a p b q c r d s e t f u g v h w i x j y k z l o);
