//! Keys and values as the cache holds them: rounded when they are written, exact when they are read.

use half::{bf16, f16};

use crate::KvType;

impl KvType {
    /// Makes of a row, the key or value of one head, what the cache holds of it.
    pub fn round(self, row: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::F16 => row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            Self::Bf16 => row.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Self::E4m3 => row.iter_mut().for_each(|x| *x = E4M3.decode(E4M3.encode(*x))),
            Self::E5m2 => row.iter_mut().for_each(|x| *x = E5M2.decode(E5M2.encode(*x))),
            Self::Int8 | Self::Int4 => {
                let size = self.group(row.len()).expect("the type has scales");
                for group in row.chunks_exact_mut(size) {
                    let scale = self.scale(group);
                    group.iter_mut().for_each(|x| *x = self.whole(*x, scale) as f32 * scale.to_f32());
                }
            }
        }
    }

    /// The bytes of one page of one head, little-endian: `rows` is `[page token][head_dim]`.
    #[must_use]
    pub fn encode(self, rows: &[f32], head_dim: usize) -> Vec<u8> {
        match self {
            Self::F32 => rows.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => rows.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::Bf16 => rows.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            Self::E4m3 => rows.iter().map(|&x| E4M3.encode(x)).collect(),
            Self::E5m2 => rows.iter().map(|&x| E5M2.encode(x)).collect(),
            Self::Int8 | Self::Int4 => self.encode_groups(rows, head_dim),
        }
    }

    /// The rows of pages of `page` tokens, as far as the type holds them: what [`KvType::encode`] made the bytes of, one
    /// page after the other.
    #[must_use]
    pub fn decode(self, bytes: &[u8], page: usize, head_dim: usize) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32()).collect(),
            Self::E4m3 => bytes.iter().map(|&x| E4M3.decode(x)).collect(),
            Self::E5m2 => bytes.iter().map(|&x| E5M2.decode(x)).collect(),
            Self::Int8 | Self::Int4 => {
                let pages = bytes.chunks_exact(self.page_bytes(page, head_dim));
                pages.flat_map(|bytes| self.decode_groups(bytes, page, head_dim)).collect()
            }
        }
    }

    fn scale(self, group: &[f32]) -> bf16 {
        let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(bounded(*x).abs()));
        bf16::from_f32(largest / self.largest_whole())
    }

    fn whole(self, number: f32, scale: bf16) -> i32 {
        if scale == bf16::ZERO {
            return 0;
        }
        let most = self.largest_whole();
        (bounded(number) / scale.to_f32()).clamp(-most, most).round_ties_even() as i32
    }

    fn largest_whole(self) -> f32 {
        self.most().expect("the type has scales") as f32
    }

    fn encode_groups(self, rows: &[f32], head_dim: usize) -> Vec<u8> {
        let (mut numbers, mut scales) = (Vec::new(), Vec::new());
        // A page is a whole number of groups.
        for group in rows.chunks_exact(self.group(head_dim).expect("the type has scales")) {
            let scale = self.scale(group);
            scales.extend(scale.to_le_bytes());
            let bits = |at: usize, x: f32| (self.whole(x, scale) as u32 & self.mask()) << (at * self.bits());
            let byte = |numbers: &[f32]| numbers.iter().enumerate().map(|(at, x)| bits(at, *x)).sum::<u32>() as u8;
            numbers.extend(group.chunks_exact(8 / self.bits()).map(byte));
        }
        let bytes = self.page_bytes(rows.len() / head_dim, head_dim);
        numbers.extend(scales);
        numbers.resize(bytes, 0);
        numbers
    }

    fn decode_groups(self, bytes: &[u8], page: usize, head_dim: usize) -> Vec<f32> {
        let (numbers, scales) = bytes.split_at(page * self.number_bytes(head_dim));
        let scale = |group: usize| bf16::from_le_bytes([scales[2 * group], scales[2 * group + 1]]).to_f32();
        let group = self.group(head_dim).expect("the type has scales");
        let number = |at: usize| {
            let bits = u32::from(numbers[at * self.bits() / 8]) >> (at * self.bits() % 8);
            // The sign stands in the highest bit.
            (bits << (32 - self.bits())).cast_signed() >> (32 - self.bits())
        };
        (0..page * head_dim).map(|at| number(at) as f32 * scale(at / group)).collect()
    }

    const fn mask(self) -> u32 {
        (1 << self.bits()) - 1
    }
}

/// 2^100: beyond this, numbers count as this where they have a scale. Sums of products with it stay finite.
pub(crate) const FARTHEST: f32 = f32::from_bits(227 << 23);

/// A number as it enters a scale: NaN is 0.
fn bounded(number: f32) -> f32 {
    if number.is_nan() { 0.0 } else { number.clamp(-FARTHEST, FARTHEST) }
}

/// A float of eight bits: a sign, an exponent, a mantissa of so many bits. NaN is 0x7f; infinities are never written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Float8 {
    pub(crate) mantissa: u32,
    /// What the exponent of 1 is stored as.
    pub(crate) bias: u32,
    /// What everything larger is rounded to.
    pub(crate) largest: f32,
}

pub(crate) const E4M3: Float8 = Float8 { mantissa: 3, bias: 7, largest: 448.0 };
pub(crate) const E5M2: Float8 = Float8 { mantissa: 2, bias: 15, largest: 57344.0 };

impl Float8 {
    const NAN: u8 = 0x7f;

    /// The power of two below which all numbers are multiples of the same step.
    pub(crate) fn least_normal(self) -> f32 {
        power_of_two(1 - self.bias as i32)
    }

    /// A float whose last bit is that step, so that a sum with it is rounded to steps.
    pub(crate) fn of_steps(self) -> f32 {
        power_of_two(24 - self.bias as i32 - self.mantissa as i32)
    }

    /// What a float with the same exponent field is smaller by.
    pub(crate) fn ratio(self) -> f32 {
        power_of_two(127 - self.bias as i32)
    }

    /// Bits of an f32's mantissa that are lost.
    pub(crate) fn lost(self) -> u32 {
        23 - self.mantissa
    }

    fn encode(self, number: f32) -> u8 {
        if number.is_nan() {
            return Self::NAN;
        }
        let sign = (number.to_bits() >> 24) as u8 & 0x80;
        let size = number.abs().min(self.largest);
        let code = if size < self.least_normal() {
            (size + self.of_steps()).to_bits() & 0xf
        } else {
            // Half a step up, and just less than that where the last bit is even.
            let bits = size.to_bits();
            let half = (1 << (self.lost() - 1)) - 1 + (bits >> self.lost() & 1);
            ((bits + half) >> self.lost()) - ((127 - self.bias) << self.mantissa)
        };
        sign | code as u8
    }

    fn decode(self, code: u8) -> f32 {
        let size = u32::from(code & 0x7f);
        if size == u32::from(Self::NAN) {
            return f32::NAN;
        }
        f32::from_bits(size << self.lost() | u32::from(code & 0x80) << 24) * self.ratio()
    }
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{E4M3, E5M2, Float8};
    use crate::KvType;

    /// Every number of the type that is written, ascending.
    fn numbers(float: Float8) -> Vec<f64> {
        let numbers = (0..0x7f).map(|code| f64::from(float.decode(code)));
        numbers.filter(|number| *number <= f64::from(float.largest)).collect()
    }

    #[test]
    fn eight_bit_floats_have_the_values_that_their_definition_gives() {
        let (e4m3, e5m2) = (numbers(E4M3), numbers(E5M2));
        assert_eq!((e4m3.len(), e5m2.len()), (127, 124));
        // Subnormal steps, 1, the largest.
        assert_eq!((e4m3[1], e4m3[8], e4m3[56], e4m3[126]), (1.0 / 512.0, 1.0 / 64.0, 1.0, 448.0));
        assert_eq!((e5m2[1], e5m2[4], e5m2[60], e5m2[123]), (1.0 / 65536.0, 1.0 / 16384.0, 1.0, 57344.0));
        for numbers in [e4m3, e5m2] {
            assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        }
    }

    /// Llama-3.1-8B: 32 layers, 8 key-value heads of 128, a key and a value each.
    #[test]
    fn a_token_of_an_8b_model_takes_34_816_bytes_at_four_bits() {
        let bytes = |kv_type: KvType| 32 * 8 * 2 * kv_type.row_bytes(128);
        let all = KvType::ALL.map(bytes);
        assert_eq!(all, [262_144, 131_072, 131_072, 65_536, 65_536, 67_584, 34_816]);
        // Nothing is lost between the rows of a page.
        assert_eq!(KvType::Int4.page_bytes(16, 128), 16 * 68);
    }

    #[test]
    fn zeros_infinities_and_nan_are_held_as_documented() {
        for kv_type in [KvType::Int8, KvType::Int4] {
            let mut row = [0.0; 64];
            kv_type.round(&mut row);
            assert_eq!(row, [0.0; 64]);
            row[3] = f32::NAN;
            row[5] = -2.0;
            kv_type.round(&mut row);
            assert!(row[3] == 0.0 && (row[5] + 2.0).abs() < 2.0 / 128.0, "{row:?}");
            row[7] = f32::NEG_INFINITY;
            kv_type.round(&mut row);
            assert!(row[5] == 0.0 && row[7] < -1e30 && row[7].is_finite(), "{row:?}");
        }
    }

    proptest! {
        #[test]
        fn a_number_with_a_scale_is_off_by_half_a_step_at_most(
            row in prop::collection::vec(-3.0..3.0_f32, 128),
            size in -40..40_i32,
        ) {
            let row: Vec<f32> = row.iter().map(|x| x * 2.0_f32.powi(size)).collect();
            for kv_type in [KvType::Int8, KvType::Int4] {
                let mut held = row.clone();
                kv_type.round(&mut held);
                for (held, row) in held.chunks(64).zip(row.chunks(64)) {
                    let largest = row.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                    // The scale is rounded too, to one part in 256.
                    let half = largest / kv_type.most().unwrap() as f32 * 0.502;
                    let off = held.iter().zip(row).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    prop_assert!(off <= half, "{} is more than {}", off, half);
                }
            }
        }

        #[test]
        fn bytes_hold_what_rounding_says(rows in prop::collection::vec(-3.0..3.0_f32, 4 * 64)) {
            for kv_type in KvType::ALL {
                let bytes = kv_type.encode(&rows, 64);
                prop_assert_eq!(bytes.len(), kv_type.page_bytes(4, 64));
                let mut held = rows.clone();
                held.chunks_mut(64).for_each(|row| kv_type.round(row));
                prop_assert_eq!(kv_type.decode(&bytes, 4, 64), held);
            }
        }

        #[test]
        fn the_nearest_number_is_written_and_the_even_one_where_two_are(bits in any::<u32>(), scale in -20..20_i32) {
            let spread = f32::from_bits(bits);
            let near = (bits as f32 / u32::MAX as f32 - 0.5) * (2.0_f32).powi(scale);
            for (float, number) in [(E4M3, spread), (E5M2, spread), (E4M3, near), (E5M2, near)] {
                let held = float.decode(float.encode(number));
                if number.is_nan() {
                    prop_assert!(held.is_nan());
                    continue;
                }
                let size = f64::from(number.abs().min(float.largest));
                let off = |held: f64| (held - size).abs();
                let numbers = numbers(float);
                let best = (0..numbers.len()).min_by(|&a, &b| {
                    off(numbers[a]).total_cmp(&off(numbers[b])).then((a % 2).cmp(&(b % 2)))
                });
                let best = numbers[best.unwrap()].copysign(f64::from(number));
                prop_assert_eq!((f64::from(held), held.is_sign_negative()), (best, number.is_sign_negative()));
            }
        }
    }
}
