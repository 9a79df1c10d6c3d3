//! What a cache holds of a key or value, by the definition of its type.

use crate::KvType;

/// Numbers of a sign, an exponent and a mantissa.
struct Float {
    /// Bits of the mantissa, the leading one not among them.
    mantissa: i32,
    /// Exponent of the least number that has that leading one; what is smaller has its step.
    least: i32,
    largest: f64,
    /// Whether what is larger than the largest becomes that, or infinite.
    saturates: bool,
}

/// Rounds a row, the key or value of one head, to what the cache holds of it: to nearest, ties to even.
pub fn hold(kv_type: KvType, row: &mut [f64]) {
    let float = match kv_type {
        KvType::Int8 | KvType::Int4 => return hold_groups(kv_type, row),
        // Nothing here is rounded to f32: see the module.
        KvType::F32 => return,
        KvType::F16 => Float { mantissa: 10, least: -14, largest: 65504.0, saturates: false },
        KvType::Bf16 => Float { mantissa: 7, least: -126, largest: f64::from(half::bf16::MAX), saturates: false },
        KvType::E4m3 => Float { mantissa: 3, least: -6, largest: 448.0, saturates: true },
        KvType::E5m2 => Float { mantissa: 2, least: -14, largest: 57344.0, saturates: true },
    };
    row.iter_mut().for_each(|x| *x = float.nearest(*x));
}

/// Whole numbers times the scale of their group: the largest of it over the largest whole number. Quotients are f32.
fn hold_groups(kv_type: KvType, row: &mut [f64]) {
    let (most, size) = match (kv_type, row.len() % 64) {
        (KvType::Int8, 0) => (127.0_f32, 64),
        (KvType::Int8, _) => (127.0, 32),
        (_, 0) => (7.0, 64),
        _ => (7.0, 32),
    };
    let scales = Float { mantissa: 7, least: -126, largest: f64::from(half::bf16::MAX), saturates: false };
    let farthest = 2_f64.powi(100);
    for group in row.chunks_mut(size) {
        for x in &mut *group {
            *x = if x.is_nan() { 0.0 } else { x.clamp(-farthest, farthest) };
        }
        let largest = group.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        let scale = scales.nearest(f64::from(largest as f32 / most));
        for x in group {
            let steps = if scale > 0.0 { f64::from(*x as f32 / scale as f32) } else { 0.0 };
            *x = scale * steps.round_ties_even().clamp(-f64::from(most), f64::from(most));
        }
    }
}

impl Float {
    fn nearest(&self, number: f64) -> f64 {
        if number.is_nan() {
            return number;
        }
        let size = number.abs();
        let exponent = ((size.to_bits() >> 52) as i32 - 1023).max(self.least);
        let step = 2_f64.powi(exponent - self.mantissa);
        let held = if size.is_finite() { (size / step).round_ties_even() * step } else { size };
        let end = if self.saturates { self.largest } else { f64::INFINITY };
        let held = if held > self.largest { end } else { held };
        held.copysign(number)
    }
}
