//! Scores as logarithms of probabilities: what a query would give the chunks if each were one key.
//!
//! Raw products of one query or head may all be larger than those of another, whose wishes then count for nothing; a
//! softmax gives every row of every head the same to share out.

use super::scan::Reached;
use crate::QueryReduction;

/// Scores of one query head's chunks; `None` where there is none, which takes no part in the softmax.
///
/// Each row is normalised over the chunks, then rows are reduced: to the largest probability or to their mean.
pub(super) fn scores(reached: &[Option<Reached>], reduction: QueryReduction) -> Vec<Option<f32>> {
    let rows = reached.iter().flatten().map(|reached| reached.rows.len()).max().unwrap_or(0);
    let totals: Vec<f64> =
        (0..rows).map(|row| log_sum_exp(reached.iter().flatten().map(|reached| reached.rows[row]))).collect();
    reached
        .iter()
        .map(|reached| {
            let logarithms = reached.as_ref()?.rows.iter().zip(&totals).map(|(row, total)| row - total);
            let score = match reduction {
                QueryReduction::Max => logarithms.fold(f64::NEG_INFINITY, f64::max),
                QueryReduction::Mean => log_sum_exp(logarithms) - (rows as f64).ln(),
            };
            Some(score as f32)
        })
        .collect()
}

/// ln Σ exp x, shifted by the largest so that nothing overflows.
fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + values.map(|x| (x - largest).exp()).sum::<f64>().ln()
}
