//! Rotary positions: the rotation itself and where each mode puts queries and keys (paper §3.3, appendix D).

use std::ops::Range;

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
    blend(x, &[(1.0, position)], frequencies)
}

/// Rotates one head's vector at several positions, given with their shares, and adds up the shares of the results.
///
/// The authors' code blends cosines and sines, which is the same. They are not normalised again: what positions that
/// differ do to a pair is to shorten it.
#[must_use]
pub fn blend(x: &[f64], positions: &[(f64, usize)], frequencies: &[f64]) -> Vec<f64> {
    let half = frequencies.len();
    let mut rotated = vec![0.0; x.len()];
    for (i, frequency) in frequencies.iter().enumerate() {
        for &(share, position) in positions {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (sin, cos) = (share * f64::from(sin as f32), share * f64::from(cos as f32));
            rotated[i] += x[i] * cos - x[half + i] * sin;
            rotated[half + i] += x[half + i] * cos + x[i] * sin;
        }
    }
    rotated
}

/// The queries of one block, and what the model was trained on: what extended positions depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Positions of the queries, as many as there are.
    pub queries: Range<usize>,
    /// Positions that the model was trained on, `L`.
    pub trained: usize,
}

impl Span {
    /// Where `dynamic_extend` (as the authors' code does) puts the key at `position`.
    ///
    /// As long as the block ends within the trained positions, where it is. From then on the last quarter of them stays
    /// in place behind the block, and what lies before is drawn together linearly into the other three.
    #[must_use]
    pub fn dynamic_extend(&self, position: usize) -> usize {
        let [first, end, trained, key] =
            [self.queries.start, self.queries.end, self.trained, position].map(|x| x as i64);
        let near = trained / 4;
        if end <= trained {
            return position;
        }
        let place = if key >= end - near || first <= near {
            key
        } else {
            // Counted from `first − near`, towards which keys move; division is towards zero.
            let fixed = first - near;
            fixed + (key - fixed) * (trained - near) / fixed
        };
        place.max(end - trained) as usize
    }

    /// Where `self_extend` puts the key at `position` (Self-Extend, arXiv 2401.01325 §3, in groups of 16, counted back
    /// from the block's first query as the authors of InfiniteHiP do).
    ///
    /// As long as the block ends within the trained positions, where it is; so do the last 8192, or as many as were
    /// trained, from then on.
    #[must_use]
    pub fn self_extend(&self, position: usize) -> usize {
        let [first, end, trained, key] =
            [self.queries.start, self.queries.end, self.trained, position].map(|x| x as i64);
        let near = trained.min(8192);
        if end <= trained || key >= end - near { position } else { (first - (first - key) / 16).max(0) as usize }
    }
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
        ScanRope::DynamicExtend | ScanRope::SelfExtend => Some(position),
        ScanRope::None => None,
    }
}

/// Where the scan of a query block puts the key at `position` that represents `branch` of the chunk with number `index`
/// in the stage's ascending list; `None` leaves it as it is.
#[must_use]
pub fn scan_key(mode: ScanRope, branch: Branch, index: usize, position: usize, span: &Span) -> Option<usize> {
    match (mode, branch) {
        (ScanRope::Relative, Branch::Left) => Some(0),
        (ScanRope::Relative, Branch::Right) => Some(1),
        (ScanRope::ChunkIndexed, _) => Some(index),
        (ScanRope::Infllm, _) => Some(0),
        (ScanRope::DynamicExtend, _) => Some(span.dynamic_extend(position)),
        (ScanRope::SelfExtend, _) => Some(span.self_extend(position)),
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
    /// A token in the sliding window.
    Window,
}

/// What the positions of one block list's keys depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The queries that read the list.
    pub span: Span,
    /// Sliding window.
    pub window: usize,
    /// Sink tokens.
    pub sink: usize,
    /// Tokens in the block list, `count · block`.
    pub selected: usize,
}

/// Where the attention puts the key at `position`: positions and their shares, none to leave it as it is. Queries and
/// window keys keep their true positions.
///
/// Streaming (paper §3.3): sinks and selected tokens are packed, in order and without gaps, so that the last one lies
/// one window before the block's first query; what would fall below 0 lies at 0. InfLLM (arXiv 2402.04617 §3.2): all at
/// that one place. `dynamic_extend` blends three parts of the former with one of the extended position, as the authors'
/// code does.
#[must_use]
pub fn attend_key(mode: AttendRope, group: Group, position: usize, packing: &Packing) -> Vec<(f64, usize)> {
    let first_position = packing.span.queries.start;
    let number = match group {
        Group::Window => return if mode == AttendRope::None { Vec::new() } else { vec![(1.0, position)] },
        Group::Sink(token) => token,
        Group::Selected(token) => packing.sink + token,
    };
    // The last of all packed tokens lies at first_position − window.
    let after = packing.sink + packing.selected - 1 - number;
    let packed = first_position.saturating_sub(packing.window + after);
    match mode {
        AttendRope::None => Vec::new(),
        AttendRope::Streaming => vec![(1.0, packed)],
        AttendRope::Infllm => vec![(1.0, first_position.saturating_sub(packing.window))],
        AttendRope::DynamicExtend => vec![(0.75, packed), (0.25, packing.span.dynamic_extend(position))],
        AttendRope::SelfExtend => vec![(1.0, packing.span.self_extend(position))],
    }
}
