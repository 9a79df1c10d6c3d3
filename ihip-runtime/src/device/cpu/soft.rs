//! Scores as logarithms of probabilities: each row of each head shares out the same among the chunks.

use ihip_dsl::QueryReduction;
use pulp::{Arch, Simd, WithSimd};

use super::linear::exp;

/// Chunks whose probabilities are summed on their own, so that a sum over very many loses no digits.
const PARTIAL_SUM: usize = 256;

/// Scores of one head's chunks from what its rows made of each, `[chunks][columns]`, of which the first `rows` columns
/// count: logarithms of each row's softmax over the chunks, reduced to the largest or to that of the mean probability.
pub(super) fn scores(arch: Arch, products: &[f32], columns: usize, rows: usize, reduction: QueryReduction) -> Vec<f32> {
    arch.dispatch(Soft { products, columns, rows, reduction })
}

struct Soft<'a> {
    products: &'a [f32],
    columns: usize,
    rows: usize,
    reduction: QueryReduction,
}

impl WithSimd for Soft<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
        let Self { products, columns, rows, reduction } = self;
        let totals = log_sums(products, columns);
        let mut logarithms = vec![0.0; columns];
        let score = |products: &[f32]| {
            for ((logarithm, product), total) in logarithms.iter_mut().zip(products).zip(&totals) {
                *logarithm = product - total;
            }
            let logarithms = &mut logarithms[..rows];
            let largest = logarithms.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            match reduction {
                QueryReduction::Max => largest,
                QueryReduction::Mean => {
                    logarithms.iter_mut().for_each(|logarithm| *logarithm = exp(*logarithm - largest));
                    largest + (logarithms.iter().sum::<f32>() / rows as f32).ln()
                }
            }
        };
        products.chunks_exact(columns).map(score).collect()
    }
}

/// ln Σ exp of every column, relative to its largest element so that nothing overflows.
#[inline(always)]
fn log_sums(products: &[f32], columns: usize) -> Vec<f32> {
    let mut largest = vec![f32::NEG_INFINITY; columns];
    for products in products.chunks_exact(columns) {
        for (largest, product) in largest.iter_mut().zip(products) {
            *largest = if *product > *largest { *product } else { *largest };
        }
    }
    let mut sums = vec![0.0; columns];
    let mut partial = vec![0.0; columns];
    for products in products.chunks(PARTIAL_SUM * columns) {
        partial.fill(0.0);
        for products in products.chunks_exact(columns) {
            for ((sum, product), largest) in partial.iter_mut().zip(products).zip(&largest) {
                *sum += exp(product - largest);
            }
        }
        sums.iter_mut().zip(&partial).for_each(|(sum, partial)| *sum += partial);
    }
    sums.iter().zip(&largest).map(|(sum, largest)| largest + sum.ln()).collect()
}
