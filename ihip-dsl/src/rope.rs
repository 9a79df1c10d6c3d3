//! Rotary positions of every mode, and the tables of their cosines and sines (paper §3.3, appendix D).
//!
//! Plan, CPU device and emitter share this module; the reference states the same rules on its own.

use std::ops::Range;

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

    /// Where the attention of the query block at positions `queries`, whose list counts `count` blocks, has a sink or a
    /// selected key that lies at position `key` and is token `token` of the packed ones.
    ///
    /// Packed keys are the sinks, then the blocks of the list, all tokens of them counted, visible or not. Queries
    /// and window keys keep their true positions. `trained` are the positions that the model was trained on.
    #[must_use]
    pub fn key_position(
        &self,
        key: usize,
        token: usize,
        queries: &Range<usize>,
        count: usize,
        trained: usize,
    ) -> KeyPosition {
        // The last packed token lies one window before the first query; below 0 all lie at 0.
        let packed = (queries.start + token + 1).saturating_sub(self.window + self.sink + count * self.block);
        let extended = |extension| ExtendedPositions::new(extension, queries, trained).of(key);
        match self.attend_rope {
            AttendRope::None => KeyPosition::Cached,
            AttendRope::Infllm => KeyPosition::At(queries.start.saturating_sub(self.window)),
            AttendRope::Streaming => KeyPosition::At(packed),
            AttendRope::SelfExtend => KeyPosition::At(extended(Extension::SelfExtend)),
            AttendRope::DynamicExtend => KeyPosition::Blend([packed, extended(Extension::DynamicExtend)]),
        }
    }
}

/// Where a key is rotated to in the attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyPosition {
    /// Nowhere: it stays as it is cached.
    Cached,
    /// To this position.
    At(usize),
    /// To both positions, cosines and sines weighted by [`BLEND`].
    Blend([usize; 2]),
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
                trained.max(query_block).max((query_block - 1) * room / far + room + 1 - query_block)
            }
            Self::SelfExtend => trained.max(tokens / EXTENSION_GROUP + query_block),
        }
    }
}

/// Positions of the keys that one query block reads in the modes `dynamic_extend` and `self_extend`. Its queries keep
/// theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedPositions {
    extension: Extension,
    /// Position of the first query.
    first: i64,
    /// One past the position of the last query.
    end: i64,
    /// Positions that the model was trained on.
    trained: i64,
    /// Keys at the end that keep their positions.
    near: i64,
}

impl ExtendedPositions {
    /// Those of the query block at positions `queries`, for a model trained on `trained` positions.
    #[must_use]
    pub const fn new(extension: Extension, queries: &Range<usize>, trained: usize) -> Self {
        Self {
            extension,
            first: queries.start as i64,
            end: queries.end as i64,
            trained: trained as i64,
            near: extension.near(trained) as i64,
        }
    }

    /// Where the key at position `key` stands.
    #[must_use]
    pub const fn of(&self, key: usize) -> usize {
        let key = key as i64;
        let &Self { extension, first, end, trained, near } = self;
        if end <= trained {
            return key as usize;
        }
        let is_near = key >= end - near;
        // Quotients are truncated towards zero.
        let position = match extension {
            Extension::DynamicExtend if is_near || first <= near => key,
            Extension::DynamicExtend => {
                let far = first - near;
                (key - far) * (trained - near) / far + far
            }
            Extension::SelfExtend if is_near => key,
            Extension::SelfExtend => first - (first - key) / EXTENSION_GROUP as i64,
        };
        let least = self.origin() as i64;
        (if position > least { position } else { least }) as usize
    }

    /// The least position of any key. Only differences matter: positions counted from here fit a short table
    /// however long the sequence is.
    #[must_use]
    pub const fn origin(&self) -> usize {
        let &Self { extension, first, end, trained, near } = self;
        if end <= trained {
            return 0;
        }
        let origin = match extension {
            Extension::DynamicExtend => end - trained,
            Extension::SelfExtend => {
                let (farthest, nearest) = (first - first / EXTENSION_GROUP as i64, end - near);
                if farthest < nearest { farthest } else { nearest }
            }
        };
        origin as usize
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

    /// Rotates the key `head` to `position`.
    ///
    /// # Panics
    /// Where `position` is not in the table.
    pub fn place(&self, head: &mut [f32], position: KeyPosition) {
        match position {
            KeyPosition::Cached => {}
            KeyPosition::At(position) => self.rotate(head, position),
            KeyPosition::Blend(positions) => {
                let [(cos, sin), (far_cos, far_sin)] = positions.map(|position| self.at(position));
                let blend = |near: f32, far: f32| BLEND[0] * near + BLEND[1] * far;
                let (low, high) = head.split_at_mut(cos.len());
                for (pair, (low, high)) in low.iter_mut().zip(high).enumerate() {
                    let (cos, sin) = (blend(cos[pair], far_cos[pair]), blend(sin[pair], far_sin[pair]));
                    let (x, y) = (*low, *high);
                    *low = x * cos - y * sin;
                    *high = y * cos + x * sin;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(extension: Extension, queries: Range<usize>, keys: &[usize]) -> Vec<usize> {
        let positions = ExtendedPositions::new(extension, &queries, 1024);
        keys.iter().map(|&key| positions.of(key)).collect()
    }

    #[test]
    fn nothing_moves_within_the_trained_positions() {
        for extension in [Extension::DynamicExtend, Extension::SelfExtend] {
            assert_eq!(positions(extension, 960..1024, &[0, 500, 1023]), [0, 500, 1023]);
        }
    }

    #[test]
    fn far_keys_are_drawn_together_linearly_and_stay_within_reach() {
        // 256 keys stay; the 3,744 before them get 768 positions, of which the block's last query reaches all but 64.
        let got = positions(Extension::DynamicExtend, 4000..4064, &[0, 1000, 3743, 3744, 3807, 3808]);
        assert_eq!(got, [3040, 3744 - 2744 * 768 / 3744, 3744, 3744, 3744 + 63 * 768 / 3744, 3808]);
    }

    #[test]
    fn far_keys_share_positions_in_groups() {
        let got = positions(Extension::SelfExtend, 40_000..40_064, &[0, 15, 16, 17, 39_039, 39_040]);
        assert_eq!(got, [37_500, 37_501, 37_501, 37_502, 39_940, 39_040]);
    }

    #[test]
    fn positions_fit_the_table_beyond_two_million() {
        for extension in [Extension::DynamicExtend, Extension::SelfExtend] {
            for (first, trained) in [(3_000_000, 131_072), (100_000, 8192), (9000, 8192), (1023, 1024), (1024, 1024)] {
                let queries = first..first + 64;
                let positions = ExtendedPositions::new(extension, &queries, trained);
                let end = positions.origin() + extension.positions(64, queries.end, trained);
                assert!(end >= queries.end, "{extension:?} at {first}");
                for key in (0..first).step_by(61) {
                    assert!((positions.origin()..end).contains(&positions.of(key)), "{extension:?}: {key} at {first}");
                }
            }
        }
    }

    #[test]
    fn positions_fit_the_table_where_blocks_are_as_long_as_what_the_model_was_trained_on() {
        for extension in [Extension::DynamicExtend, Extension::SelfExtend] {
            for (trained, block) in [(96, 64), (96, 128), (40, 48), (1, 1), (3, 16), (1000, 1024)] {
                for (first, count) in (0..3000).step_by(7).flat_map(|first| [(first, block), (first, block / 2 + 1)]) {
                    let positions = ExtendedPositions::new(extension, &(first..first + count), trained);
                    let end = positions.origin() + extension.positions(block, 4024, trained);
                    assert!(end >= first + count, "{extension:?} at {first}, {block} queries, {trained} trained");
                    let farthest = (0..first + count).map(|key| positions.of(key)).max().expect("a key");
                    assert!(farthest < end, "{extension:?} at {first}, {block} queries, {trained} trained: {farthest}");
                }
            }
        }
    }
}
