//! Rotary positions: the rotation itself and where each mode puts queries and keys (paper §3.3, appendix D).

use crate::{AttendRope, ScanRope};

/// Half of a chunk that is probed while it is halved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// The lower half.
    Left,
    /// The upper half.
    Right,
}

/// Rotates one head's vector at `position`.
///
/// Half-split convention: elements `i` and `i + d/2` are the two coordinates that turn by
/// `position · frequencies[i]`. The angle is f64, its cosine and sine are rounded to f32.
#[must_use]
pub fn rotate(x: &[f64], position: usize, frequencies: &[f64]) -> Vec<f64> {
    let half = frequencies.len();
    let mut rotated = vec![0.0; x.len()];
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let (sin, cos) = (f64::from(sin as f32), f64::from(cos as f32));
        rotated[i] = x[i] * cos - x[half + i] * sin;
        rotated[half + i] = x[half + i] * cos + x[i] * sin;
    }
    rotated
}

/// Where the scan puts a query that stands at `position`, in a stage of `chunks` chunks; `None` leaves it as it is.
///
/// `scan_window` is the window while scanning. Chunk-indexed positions saturate at `chunks + scan_window`, with the
/// chunks of the whole grid, visible or not, as the authors' code does: the paper's own text
/// (appendix D) has the chunk size in that place, which would not leave the query behind the last chunk.
#[must_use]
pub fn scan_query(mode: ScanRope, position: usize, chunks: usize, scan_window: usize) -> Option<usize> {
    match mode {
        ScanRope::Relative => Some(1 + scan_window),
        ScanRope::ChunkIndexed => Some(position.min(chunks + scan_window)),
        ScanRope::Infllm => Some(scan_window),
        ScanRope::DynamicExtend | ScanRope::SelfExtend => unreachable!("no word of the language leads here yet"),
        ScanRope::None => None,
    }
}

/// Where the scan puts the key that represents `branch` of the chunk with number `index` in the stage's ascending
/// list; `None` leaves it as it is.
#[must_use]
pub fn scan_key(mode: ScanRope, branch: Branch, index: usize) -> Option<usize> {
    match (mode, branch) {
        (ScanRope::Relative, Branch::Left) => Some(0),
        (ScanRope::Relative, Branch::Right) => Some(1),
        (ScanRope::ChunkIndexed, _) => Some(index),
        (ScanRope::Infllm, _) => Some(0),
        (ScanRope::DynamicExtend | ScanRope::SelfExtend, _) => unreachable!("no word of the language leads here yet"),
        (ScanRope::None, _) => None,
    }
}

/// The keys of one query block, by the group in which its attention reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Token number `.0` of the block list, counted over all blocks that count, whether the token is visible or not.
    Selected(usize),
    /// Sink token `.0`.
    Sink(usize),
    /// The token at position `.0` in the sliding window.
    Window(usize),
}

/// What the positions of one query block's keys depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Position of the block's first query.
    pub first_position: usize,
    /// Sliding window.
    pub window: usize,
    /// Sink tokens.
    pub sink: usize,
    /// Tokens in the block list, `count · block`.
    pub selected: usize,
}

/// Where the attention puts a key; `None` leaves it as it is. Queries and window keys keep their true positions.
///
/// Streaming (paper §3.3): sinks and selected tokens are packed, in order and without gaps, so that the last one lies
/// one window before the block's first query; what would fall below 0 lies at 0. InfLLM: all at that one place.
#[must_use]
pub fn attend_key(mode: AttendRope, group: Group, packing: Packing) -> Option<usize> {
    let packed = |number: usize| {
        // The last of all packed tokens lies at first_position − window.
        let after = packing.sink + packing.selected - 1 - number;
        packing.first_position.saturating_sub(packing.window + after)
    };
    match (mode, group) {
        (AttendRope::None, _) => None,
        (_, Group::Window(position)) => Some(position),
        (AttendRope::Infllm, _) => Some(packing.first_position.saturating_sub(packing.window)),
        (AttendRope::DynamicExtend | AttendRope::SelfExtend, _) => {
            unreachable!("no word of the language leads here yet")
        }
        (AttendRope::Streaming, Group::Sink(token)) => Some(packed(token)),
        (AttendRope::Streaming, Group::Selected(token)) => Some(packed(packing.sink + token)),
    }
}
