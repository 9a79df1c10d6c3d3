//! What of a kernel may be chosen freely: threads, tiles, stages of copies and splits. A choice changes how fast the
//! kernel is and in which order it adds; never which keys it reads or which chunks it keeps.
//!
//! Every family declares its space, and nothing outside of it can be chosen.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A choice for one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum Tuning {
    /// Of a scan of a decoding step.
    ScanDecode(ScanDecode),
    /// Of a scan of prefill on tensor cores.
    ScanPrefill(ScanPrefill),
    /// Of the attention of a decoding step.
    AttendDecode(AttendDecode),
    /// Of the attention of prefill on tensor cores.
    AttendPrefill(AttendPrefill),
    /// Of a decoding step in a dense layer on tensor cores.
    DenseDecode(DenseDecode),
}

impl Tuning {
    /// Whether the kernel is one of decoding, not of prefill.
    #[must_use]
    pub const fn decodes(&self) -> bool {
        match self {
            Self::ScanDecode(_) | Self::AttendDecode(_) | Self::DenseDecode(_) => true,
            Self::ScanPrefill(_) | Self::AttendPrefill(_) => false,
        }
    }
}

/// How a scan of a decoding step is spread over the chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanDecode {
    /// Threads of a block.
    pub threads: usize,
    /// Warps of a launch, over all lists.
    pub warps: usize,
}

/// How the scan of a query block is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanPrefill {
    /// Warps of a block of threads.
    pub warps: usize,
    /// Chunks that a warp takes at a time, a multiple of 8.
    pub chunks: usize,
    /// Blocks of threads of a launch, unless there are fewer groups of chunks.
    pub blocks: usize,
}

/// How the keys of one query are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttendDecode {
    /// Threads of a block.
    pub threads: usize,
    /// Keys of a split.
    pub keys: usize,
}

/// Tiles of the attention of a query block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttendPrefill {
    /// Rows of a block of threads at most: queries times heads, sixteen a warp.
    pub rows: usize,
    /// Keys of a tile.
    pub keys: usize,
}

/// How one query goes through every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseDecode {
    /// Warps of a block, each with a pipeline of copies of its own.
    pub warps: usize,
    /// Tiles of a warp in shared memory.
    pub stages: usize,
    /// Blocks of threads, over all key-value heads.
    pub blocks: usize,
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScanDecode(ScanDecode { threads, warps }) => write!(f, "{threads} threads, {warps} warps"),
            Self::ScanPrefill(ScanPrefill { warps, chunks, blocks }) => {
                write!(f, "{warps} warps, {chunks} chunks, {blocks} blocks")
            }
            Self::AttendDecode(AttendDecode { threads, keys }) => write!(f, "{threads} threads, {keys} keys"),
            Self::AttendPrefill(AttendPrefill { rows, keys }) => write!(f, "{rows} rows, {keys} keys"),
            Self::DenseDecode(DenseDecode { warps, stages, blocks }) => {
                write!(f, "{warps} warps, {stages} stages, {blocks} blocks")
            }
        }
    }
}

/// Choices by kernel; whatever is not among them is as its family declares it.
///
/// A kernel is named without its pipeline, and with the heads of the model: `s0_scan_decode_relative_c256_d128_bf16_h32_8`.
/// Pipelines that share a kernel but for its name share its choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunings(BTreeMap<String, Tuning>);

impl Tunings {
    /// The choice for a kernel.
    #[must_use]
    pub fn get(&self, kernel: &str) -> Option<Tuning> {
        self.0.get(kernel).copied()
    }

    /// The same with another choice for one kernel.
    #[must_use]
    pub fn with(mut self, kernel: &str, tuning: Tuning) -> Self {
        self.0.insert(kernel.to_owned(), tuning);
        self
    }
}

impl FromIterator<(String, Tuning)> for Tunings {
    fn from_iter<I: IntoIterator<Item = (String, Tuning)>>(choices: I) -> Self {
        Self(choices.into_iter().collect())
    }
}

/// A kernel of which something can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// What [`Tunings`] call it.
    pub site: String,
    /// Its name in the program.
    pub kernel: String,
    /// What it is now.
    pub tuning: Tuning,
    /// Every choice there is.
    pub space: Vec<Tuning>,
}
