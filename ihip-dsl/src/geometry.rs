//! What the model brings to a pipeline.

use serde::Serialize;

use crate::Ranking;

/// Shape of one attention layer. Sequence length is never part of it: that is a run-time argument.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Geometry {
    /// Query heads `H`.
    pub query_heads: u32,
    /// Key-value heads; divides `query_heads` (GQA).
    pub kv_heads: u32,
    /// Elements of one head, even.
    pub head_dim: u32,
    /// Element type of the key-value cache.
    pub kv_type: KvType,
    /// Tokens of one page of the key-value cache.
    pub page: u32,
    /// Factor that queries are multiplied by before any product with a key, usually 1/√head_dim.
    pub query_scale: f32,
    /// Positions that the model was trained on, `L`: what `dynamic_extend` and `self_extend` stay within.
    pub trained: u32,
}

impl Geometry {
    /// Query heads that share one key-value head.
    #[must_use]
    pub const fn group(&self) -> u32 {
        self.query_heads / self.kv_heads
    }

    /// Query heads that share one ranking: head `h` reads the list of ranking `h / ranking_heads`.
    #[must_use]
    pub const fn ranking_heads(&self, ranking: Ranking) -> u32 {
        match ranking {
            Ranking::All => self.query_heads,
            Ranking::KvGroup => self.group(),
            Ranking::Each => 1,
        }
    }

    /// Rankings of a query block, `R`.
    #[must_use]
    pub const fn rankings(&self, ranking: Ranking) -> u32 {
        self.query_heads / self.ranking_heads(ranking)
    }

    /// Elements of a row of projections: queries, keys and values of all heads.
    #[must_use]
    pub const fn projected_columns(&self) -> usize {
        ((self.query_heads + 2 * self.kv_heads) * self.head_dim) as usize
    }

    /// Elements of a row of the attention's output.
    #[must_use]
    pub const fn attended_columns(&self) -> usize {
        (self.query_heads * self.head_dim) as usize
    }

    /// Bytes of the keys, or of the values, of one page: [`Geometry::page`] rows of every key-value head.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.kv_heads as usize * self.kv_type.page_bytes(self.page as usize, self.head_dim as usize)
    }
}

/// Element type of cached keys and values. Scores and sums are f32 whatever it is.
///
/// A number is rounded to nearest, ties to even, when it is written; what is read is exact: [`KvType::round`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Eight bits: a sign, 4 of exponent, 3 of mantissa. Up to 448, where it saturates; NaN, but no infinity.
    E4m3,
    /// Eight bits: a sign, 5 of exponent, 2 of mantissa. Up to 57,344, where it saturates; infinity is never written.
    E5m2,
    /// Whole numbers from −127 to 127 times a scale that a group of 64 neighbours shares, without a zero point. NaN
    /// becomes 0.
    Int8,
    /// Whole numbers from −7 to 7 times such a scale.
    Int4,
}

impl KvType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 7] = [Self::F32, Self::F16, Self::Bf16, Self::E4m3, Self::E5m2, Self::Int8, Self::Int4];

    /// Bits of one element.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E4m3 | Self::E5m2 | Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// The largest whole number of a type that has scales.
    #[must_use]
    pub const fn most(self) -> Option<i32> {
        match self {
            Self::Int8 => Some(127),
            Self::Int4 => Some(7),
            _ => None,
        }
    }

    /// How many neighbours of a row share a scale, where the type has scales: 64; in a row that 64 does not divide 32; and where
    /// 32 does not divide it either, the whole row.
    #[must_use]
    pub const fn group(self, head_dim: usize) -> Option<usize> {
        match self.most() {
            None => None,
            Some(_) if head_dim.is_multiple_of(64) => Some(64),
            Some(_) if head_dim.is_multiple_of(32) => Some(32),
            Some(_) => Some(head_dim),
        }
    }

    /// Scales of a row. Each is a bf16, which has the range of an f32. A group's numbers are rounded to multiples of the scale as
    /// it is stored, so that the rounding of the scale itself adds no error.
    #[must_use]
    pub const fn scales(self, head_dim: usize) -> usize {
        match self.group(head_dim) {
            None => 0,
            Some(group) => head_dim / group,
        }
    }

    /// Bytes of the numbers of a row, a key or a value of one head, without its scales.
    #[must_use]
    pub const fn number_bytes(self, head_dim: usize) -> usize {
        head_dim * self.bits() / 8
    }

    /// Bytes of a row with its scales.
    #[must_use]
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        self.number_bytes(head_dim) + 2 * self.scales(head_dim)
    }

    /// Bytes of `page` rows: their numbers, then their scales, up to a multiple of what one copy moves.
    #[must_use]
    pub const fn page_bytes(self, page: usize, head_dim: usize) -> usize {
        let bytes = page * self.row_bytes(head_dim);
        if self.scales(head_dim) > 0 { bytes.next_multiple_of(16) } else { bytes }
    }

    /// Bytes of an element of a chunk's bounds: those of keys with scales are kept as f32.
    #[must_use]
    pub const fn bound_bytes(self) -> usize {
        if self.most().is_some() { 4 } else { self.bits() / 8 }
    }

    /// The type in which tensor cores multiply what the cache holds, where they do: it holds every number of the cache,
    /// scales aside.
    #[must_use]
    pub const fn factor(self) -> Option<Self> {
        match self {
            Self::F32 => None,
            Self::F16 => Some(Self::F16),
            Self::Bf16 | Self::E4m3 | Self::E5m2 | Self::Int8 | Self::Int4 => Some(Self::Bf16),
        }
    }

    /// Whether they multiply keys and values as they lie in the cache.
    #[must_use]
    pub const fn is_factor(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// The word used in kernel names and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}
