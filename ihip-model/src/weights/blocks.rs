//! How ggml stores tensor elements, and the way back to f32.

use half::{bf16, f16};
use rayon::prelude::*;

/// A way of storing tensor elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: an f16 scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32: an f16 scale, 32 half-bytes that stand for −8 to 7.
    Q4_0,
    /// Blocks of 32: an f16 scale and an f16 minimum, 32 half-bytes that stand for 0 to 15.
    Q4_1,
}

/// Elements of a quantised block.
const BLOCK: usize = 32;

impl Encoding {
    /// Every encoding that is read.
    pub const ALL: [Self; 6] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
    ];

    pub(super) const LIST: &str = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1";

    /// The encoding of ggml's type code.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// ggml's type code.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// Elements that are stored together; rows are whole numbers of them.
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => BLOCK,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 2 + BLOCK,
            Self::Q4_0 => 2 + BLOCK / 2,
            Self::Q4_1 => 4 + BLOCK / 2,
        }
    }

    /// Bytes of `elements` elements in rows of `row`, `None` when a row is no whole number of blocks.
    pub(super) fn stored_bytes(self, row: usize, elements: usize) -> Option<usize> {
        // No overflow: `elements` times 4 fits an isize, and no encoding takes more than 4 bytes an element.
        row.is_multiple_of(self.block_elements())
            .then(|| elements / self.block_elements() * self.block_bytes())
    }

    /// Writes the elements of whole blocks as f32.
    ///
    /// # Panics
    /// When `stored` and `out` are not the same number of whole blocks.
    pub fn dequantise(self, stored: &[u8], out: &mut [f32]) {
        assert_eq!(
            stored.len() / self.block_bytes(),
            out.len() / self.block_elements()
        );
        match self {
            Self::F32 => each(stored, out, f32::from_le_bytes),
            Self::F16 => each(stored, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(stored, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::Q8_0 => blocks::<{ Self::Q8_0.block_bytes() }>(stored, out, |block, out| {
                let scale = half_at(block, 0);
                for (out, byte) in out.iter_mut().zip(&block[2..]) {
                    *out = scale * f32::from(byte.cast_signed());
                }
            }),
            Self::Q4_0 => blocks::<{ Self::Q4_0.block_bytes() }>(stored, out, |block, out| {
                let scale = half_at(block, 0);
                nibbles(&block[2..], out, |nibble| scale * (nibble - 8.0));
            }),
            Self::Q4_1 => blocks::<{ Self::Q4_1.block_bytes() }>(stored, out, |block, out| {
                let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                nibbles(&block[4..], out, |nibble| scale * nibble + minimum);
            }),
        }
    }

    /// The rows of a matrix as f32, row `r` of the result being row `source(r)` of `stored`; parallel over rows.
    ///
    /// # Panics
    /// When `stored` is no whole number of rows of `row` elements, or `source` names a row that is not there.
    #[must_use]
    pub fn dequantise_rows(
        self,
        stored: &[u8],
        row: usize,
        source: impl Fn(usize) -> usize + Sync,
    ) -> Vec<f32> {
        let row_bytes = row / self.block_elements() * self.block_bytes();
        let mut out = vec![0.0; stored.len() / row_bytes * row];
        out.par_chunks_mut(row)
            .enumerate()
            .with_min_len(16)
            .for_each(|(index, out)| {
                let at = source(index) * row_bytes;
                self.dequantise(&stored[at..at + row_bytes], out);
            });
        out
    }
}

fn each<const N: usize>(stored: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(stored.as_chunks().0) {
        *out = convert(*bytes);
    }
}

fn blocks<const N: usize>(
    stored: &[u8],
    out: &mut [f32],
    convert: impl Fn(&[u8; N], &mut [f32; BLOCK]),
) {
    for (out, block) in out.as_chunks_mut().0.iter_mut().zip(stored.as_chunks().0) {
        convert(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of the 16 bytes are the first 16 elements, the high halves the last 16.
fn nibbles(bytes: &[u8], out: &mut [f32; BLOCK], convert: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = convert(f32::from(byte & 15));
        *high = convert(f32::from(byte >> 4));
    }
}

/// ggml's name of a type code, for messages.
pub(super) fn type_name(code: u32) -> String {
    let name = match code {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("the unknown type {code}"),
    };
    name.into()
}
