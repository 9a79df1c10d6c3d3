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
}

/// Element type of cached keys and values. Scores and sums are f32 whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl KvType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The word used in kernel names and on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}
