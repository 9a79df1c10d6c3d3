//! Linear maps, norms and the activation.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::product::{Rows, WIDE, product};

/// Rows that one task takes at most, so that they stay in its cache while all panels pass by.
const TASK_ROWS: usize = 96;
/// Panels of one task where there is a single row.
const TASK_PANELS: usize = 8;

/// Weights of a linear map, cut into panels of [`WIDE`] outputs: `[panel][input][output of the panel]`, the last
/// panel filled up with zeros.
#[derive(Debug)]
pub struct CpuMatrix {
    outputs: usize,
    inputs: usize,
    panels: Vec<f32>,
}

impl CpuMatrix {
    /// Packs row-major `[outputs, inputs]`.
    pub(super) fn new(outputs: usize, inputs: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), outputs * inputs);
        let mut panels = vec![0.0; outputs.div_ceil(WIDE) * WIDE * inputs];
        let rows = values.par_chunks(WIDE * inputs);
        panels.par_chunks_mut(WIDE * inputs).zip(rows).for_each(|(panel, rows)| {
            for (output, row) in rows.chunks_exact(inputs).enumerate() {
                for (input, value) in row.iter().enumerate() {
                    panel[input * WIDE + output] = *value;
                }
            }
        });
        Self { outputs, inputs, panels }
    }

    /// Outputs of the map: rows of the weights.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Copies the weights of one output.
    pub(super) fn row(&self, output: usize, into: &mut [f32]) {
        let panel = &self.panels[output / WIDE * WIDE * self.inputs..][..WIDE * self.inputs];
        for (value, column) in into.iter_mut().zip(panel.chunks_exact(WIDE)) {
            *value = column[output % WIDE];
        }
    }

    /// `merge(out[i][j], weight[j] · x[i])` for every row of `x`, `[rows, inputs]`, into `out`, `[rows, outputs]`.
    pub(super) fn apply(
        &self,
        arch: Arch,
        x: &[f32],
        out: &mut [f32],
        merge: impl Fn(&mut f32, f32) + Copy + Send + Sync,
    ) {
        assert_eq!(x.len() / self.inputs, out.len() / self.outputs);
        if x.len() == self.inputs {
            let tasks = out.par_chunks_mut(TASK_PANELS * WIDE).enumerate();
            tasks.for_each(|(task, out)| self.panels_of_rows(arch, x, task * TASK_PANELS, out, out.len(), merge));
            return;
        }
        let rows = (x.len() / self.inputs).div_ceil(rayon::current_num_threads()).clamp(1, TASK_ROWS);
        x.par_chunks(rows * self.inputs)
            .zip(out.par_chunks_mut(rows * self.outputs))
            .for_each(|(x, out)| self.panels_of_rows(arch, x, 0, out, self.outputs, merge));
    }

    /// `columns` outputs from panel `first` on, for all rows of `x`.
    fn panels_of_rows(
        &self,
        arch: Arch,
        x: &[f32],
        first: usize,
        out: &mut [f32],
        columns: usize,
        merge: impl Fn(&mut f32, f32) + Copy,
    ) {
        let panels = self.panels[first * WIDE * self.inputs..].chunks_exact(WIDE * self.inputs);
        for (panel, column) in panels.zip((0..columns).step_by(WIDE)) {
            let rows = Rows {
                step: 1,
                depth: self.inputs,
                range: 0..x.len() / self.inputs,
                row: |row| &x[row * self.inputs..][..self.inputs],
            };
            product::<WIDE, _, _>(arch, rows, panel, |row, values| {
                let out = &mut out[row * columns..(row + 1) * columns][column..];
                for (out, value) in out.iter_mut().zip(values) {
                    merge(out, *value);
                }
            });
        }
    }
}

/// Root-mean-square norm of every row.
pub(super) fn rms_norm(arch: Arch, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let columns = weight.len();
    let rows = x.par_chunks(columns).zip(out.par_chunks_mut(columns));
    rows.for_each(|(x, out)| arch.dispatch(Norm { x, weight, epsilon, out }));
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl WithSimd for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        // Sixteen sums side by side, because one alone could not be computed in vectors without reordering.
        let mut sums = [0.0f32; 16];
        for part in self.x.chunks(16) {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value * value;
            }
        }
        let mean = sums.iter().sum::<f32>() / self.x.len() as f32;
        let scale = 1.0 / (mean + self.epsilon).sqrt();
        for ((out, value), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = value * scale * weight;
        }
    }
}

/// `out = silu(gate) · up` with gate and up side by side in each row of `gate_up`.
pub(super) fn swiglu(arch: Arch, gate_up: &[f32], columns: usize, out: &mut [f32]) {
    let rows = gate_up.par_chunks(2 * columns).zip(out.par_chunks_mut(columns));
    rows.for_each(|(gate_up, out)| {
        let (gate, up) = gate_up.split_at(columns);
        arch.dispatch(Swiglu { gate, up, out });
    });
}

struct Swiglu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// e^x with a relative error below 2·10⁻⁷, in a form that compilers turn into vectors; 0 below −87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first short enough that its product with a small integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;

    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (x - whole * LN2_HIGH) - whole * LN2_LOW;
    // Taylor's series on |r| ≤ ln 2 / 2: the first term left out is below 6·10⁻⁹.
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { sum * power }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_within_a_few_roundings(x in -87.0f32..88.0) {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            prop_assert!(error < 3e-7, "exp({x}) is off by {error:e}");
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }
}
