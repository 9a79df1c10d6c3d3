//! Rotary positions of every mode, and the tables of their cosines and sines (paper §3.3, appendix D).
//!
//! Plan, CPU device and emitter share this module; the reference states the same rules on its own.

use crate::{AttendRope, PrunedLayer, ScanRope};

/// Half of a chunk that a probe stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Branch {
    /// The lower half.
    Left,
    /// The upper half.
    Right,
}

/// A rotation that moves every key of a branch by the same angle can be left to the query: what a product depends on
/// is the distance of the two positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScanDistance {
    /// Nothing is rotated.
    None,
    /// The query is rotated at this position, the keys are not.
    Constant(usize),
    /// The query is rotated at the minimum of its own position and this one, a key at the index of its chunk.
    Indexed(usize),
    /// The query is rotated at its own position, a key where [`ExtendedPositions`] has it.
    Extended(Extension),
}

impl PrunedLayer {
    /// Where queries and keys of one branch stand in the scan of a stage that scans at `rope` and whose list has `chunks`
    /// chunks.
    #[must_use]
    pub const fn scan_distance(&self, rope: ScanRope, branch: Branch, chunks: usize) -> ScanDistance {
        match (rope, branch) {
            (ScanRope::None, _) => ScanDistance::None,
            (ScanRope::DynamicExtend, _) => ScanDistance::Extended(Extension::DynamicExtend),
            (ScanRope::SelfExtend, _) => ScanDistance::Extended(Extension::SelfExtend),
            // The query stands at `scan_window + 1`, the left branch at 0 and the right one at 1.
            (ScanRope::Relative, Branch::Left) => ScanDistance::Constant(self.scan_window + 1),
            (ScanRope::Relative, Branch::Right) | (ScanRope::Infllm, _) => ScanDistance::Constant(self.scan_window),
            (ScanRope::ChunkIndexed, _) => ScanDistance::Indexed(chunks + self.scan_window),
        }
    }

    /// Position of token `token` of the packed keys in the attention of a query block whose first query stands at
    /// `first_query` and whose list counts `count` blocks; `None` where nothing is rotated.
    ///
    /// Packed keys are the sinks, then the blocks of the list, all tokens of them counted, visible or not. Queries
    /// and window keys keep their true positions.
    #[must_use]
    pub const fn packed_position(&self, token: usize, first_query: usize, count: usize) -> Option<usize> {
        match self.attend_rope {
            AttendRope::None => None,
            AttendRope::DynamicExtend | AttendRope::SelfExtend => {
                panic!("no word of the language leads here yet")
            }
            AttendRope::Infllm => Some(first_query.saturating_sub(self.window)),
            AttendRope::Streaming => {
                // The last packed token lies one window before the first query; below 0 all lie at 0.
                let packed = self.sink + count * self.block;
                Some((first_query + token + 1).saturating_sub(self.window + packed))
            }
        }
    }
}

/// Shares of the `streaming` and the `dynamic_extend` position in the attention's `dynamic_extend`.
pub const BLEND: [f32; 2] = [0.75, 0.25];

/// Keys of one group share a position in `self_extend`.
pub const EXTENSION_GROUP: usize = 16;

/// How keys far behind a query are brought back to positions that the model was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extension {
    /// Drawn together linearly, so that the first key stands where the model was trained to see it.
    DynamicExtend,
    /// [`EXTENSION_GROUP`] keys share a position.
    SelfExtend,
}

impl Extension {
    /// Keys at the end of the query block that keep their positions, where the model was trained on `trained`.
    #[must_use]
    pub const fn near(self, trained: usize) -> usize {
        match self {
            Self::DynamicExtend => trained / 4,
            Self::SelfExtend if trained < 8192 => trained,
            Self::SelfExtend => 8192,
        }
    }

    /// Positions from [`ExtendedPositions::origin`] on at which a query or a key of a block of up to `query_block`
    /// queries may stand, in a sequence of `tokens`.
    #[must_use]
    pub fn positions(self, query_block: usize, tokens: usize, trained: usize) -> usize {
        if tokens <= trained {
            return tokens;
        }
        match self {
            Self::DynamicExtend => {
                // Where a query block is nearly as long as what the model was trained on, its own keys may be driven
                // apart instead: the farther, the nearer the block is to the start.
                let room = trained - self.near(trained);
                let far = (room + 1).saturating_sub(query_block).max(1);
                trained.max((query_block - 1) * room / far + room + 1 - query_block)
            }
            Self::SelfExtend => trained.max(tokens / EXTENSION_GROUP + query_block),
        }
    }
}

/// Cosines and sines of the positions from 0 on.
///
/// Angles are f64 and only their cosines and sines are rounded to f32: an f32 angle is off by 0.25 radians at two
/// million positions.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f64>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table of `positions` positions; `frequencies` in radians a position, one for each pair of elements.
    #[must_use]
    pub fn new(frequencies: &[f64], positions: usize) -> Self {
        let mut table = Self { frequencies: frequencies.to_vec(), cos: Vec::new(), sin: Vec::new() };
        table.extend(positions);
        table
    }

    /// Positions in the table.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.len() / self.frequencies.len()
    }

    /// Makes sure that at least `positions` positions are there.
    pub fn extend(&mut self, positions: usize) {
        for position in self.positions()..positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Cosines and sines of `position`, one for each pair of elements.
    ///
    /// # Panics
    /// Where `position` is not in the table.
    #[must_use]
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Rotates one head at `position`: elements `i` and `i + head_dim / 2` are the coordinates of a pair.
    ///
    /// # Panics
    /// Where `position` is not in the table.
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        let (cos, sin) = self.at(position);
        let (low, high) = head.split_at_mut(cos.len());
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (x, y) = (*low, *high);
            *low = x * cos - y * sin;
            *high = y * cos + x * sin;
        }
    }
}
