//! The kernels that score the chunks of a stage, in the order in which they are launched.

use super::functions::Shape;
use super::launch::Buffer;
use super::normalise::Normalise;
use super::probes::Kept;
use super::scan::Scan;
use super::scan_columns::ScanColumns;
use super::scan_keys::ScanKeys;
use super::scan_keys_row::ScanKeysRow;
use super::scan_keys_tiles::ScanKeysTiles;
use super::scan_prefill::Products;
use super::scan_row::ScanRow;
use super::scan_tiles::ScanTiles;
use super::scoring::{self, Operand};
use super::tune::Tune;
use super::{Extent, Kernel};
use crate::{PrunedLayer, ScanRope, StagePlan};

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Score {
    /// Prefill: halves chunks on tensor cores.
    ScanTiles(ScanTiles),
    /// Prefill: halves chunks.
    Scan(Scan),
    /// Prefill: goes through the keys of chunks on tensor cores.
    ScanKeysTiles(ScanKeysTiles),
    /// Prefill: goes through the keys of chunks, or through those that the halving took.
    ScanKeys(ScanKeys),
    /// Decoding: halves chunks on tensor cores.
    ScanColumns(ScanColumns),
    /// Decoding: halves chunks.
    ScanRow(ScanRow),
    /// Decoding: goes through the keys of chunks.
    ScanKeysRow(ScanKeysRow),
    /// Makes one score of those of rows and heads.
    Normalise(Normalise),
}

impl Score {
    /// Those of a prefill call.
    pub(super) fn prefill(shape: Shape, layer: &PrunedLayer, stage: usize) -> Vec<Self> {
        let plan = &layer.stages[stage];
        let mut scores = Vec::new();
        if let Some(halving) = scoring::halving(plan) {
            scores.push(match ScanTiles::new(shape, layer, stage, halving).filter(|_| is_short(shape)) {
                Some(scan) => Self::ScanTiles(scan),
                None => Self::Scan(Scan::new(shape, layer, stage, halving)),
            });
        }
        if scores.is_empty() || scoring::soft(plan) {
            scores.push(match ScanKeysTiles::new(shape, layer, stage).filter(|_| is_short(shape)) {
                Some(scan) => Self::ScanKeysTiles(scan),
                None => Self::ScanKeys(ScanKeys::new(shape, layer, stage)),
            });
        }
        scores.extend(normalise(shape, layer, stage));
        scores
    }

    /// Those of a decoding step.
    pub(super) fn decode(shape: Shape, layer: &PrunedLayer, stage: usize) -> Vec<Self> {
        let plan = &layer.stages[stage];
        let fits = is_short(shape) || plan.rope != ScanRope::ChunkIndexed;
        let scan = match scoring::halving(plan) {
            Some(halving) => match ScanColumns::new(shape, layer, stage, halving).filter(|_| fits) {
                Some(scan) => Self::ScanColumns(scan),
                None => Self::ScanRow(ScanRow::new(shape, layer, stage, halving)),
            },
            None => Self::ScanKeysRow(ScanKeysRow::new(shape, layer, stage)),
        };
        std::iter::once(scan).chain(normalise(shape, layer, stage)).collect()
    }

    /// What it multiplies, where it does so on tensor cores in prefill.
    pub(super) fn products(&self) -> Option<Products> {
        match self {
            Self::ScanTiles(score) => Some(score.products()),
            Self::ScanKeysTiles(score) => Some(score.products()),
            Self::Scan(_)
            | Self::ScanKeys(_)
            | Self::ScanColumns(_)
            | Self::ScanRow(_)
            | Self::ScanKeysRow(_)
            | Self::Normalise(_) => None,
        }
    }

    /// The same where the GPU keeps `kept`, which scans of decoding that halve read.
    pub(super) fn keeping(self, kept: Kept) -> Self {
        match self {
            Self::ScanColumns(score) => Self::ScanColumns(score.keeping(kept)),
            Self::ScanRow(score) => Self::ScanRow(score.keeping(kept)),
            other => other,
        }
    }

    pub(super) fn stem(&self, pipeline: &str) -> String {
        match self {
            Self::ScanTiles(score) => score.stem(pipeline),
            Self::Scan(score) => score.stem(pipeline),
            Self::ScanKeysTiles(score) => score.stem(pipeline),
            Self::ScanKeys(score) => score.stem(pipeline),
            Self::ScanColumns(score) => score.stem(pipeline),
            Self::ScanRow(score) => score.stem(pipeline),
            Self::ScanKeysRow(score) => score.stem(pipeline),
            Self::Normalise(score) => score.stem(pipeline),
        }
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        match self {
            Self::ScanTiles(score) => score.emit(pipeline, name),
            Self::Scan(score) => score.emit(pipeline, name),
            Self::ScanKeysTiles(score) => score.emit(pipeline, name),
            Self::ScanKeys(score) => score.emit(pipeline, name),
            Self::ScanColumns(score) => score.emit(pipeline, name),
            Self::ScanRow(score) => score.emit(pipeline, name),
            Self::ScanKeysRow(score) => score.emit(pipeline, name),
            Self::Normalise(score) => score.emit(pipeline, name),
        }
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(super) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        match self {
            Self::ScanTiles(score) => score.grid(rows, chunks),
            Self::Scan(score) => score.grid(rows, chunks),
            Self::ScanKeysTiles(score) => score.grid(rows, chunks),
            Self::ScanKeys(score) => score.grid(rows, chunks),
            Self::ScanColumns(score) => score.grid(),
            Self::ScanRow(score) => score.grid(),
            Self::ScanKeysRow(score) => score.grid(),
            Self::Normalise(score) => score.grid(rows),
        }
    }

    /// What a launch passes before the strides; `parents` names the lists of the stage before.
    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<Operand> {
        match self {
            Self::ScanTiles(score) => score.operands(parents),
            Self::Scan(score) => score.operands(parents),
            Self::ScanKeysTiles(score) => score.operands(parents),
            Self::ScanKeys(score) => score.operands(parents),
            Self::ScanColumns(score) => score.operands(parents),
            Self::ScanRow(score) => score.operands(parents),
            Self::ScanKeysRow(score) => score.operands(parents),
            Self::Normalise(score) => score.operands(parents),
        }
    }
}

/// Whether a lane has registers for its parts of the keys that a product takes on tensor cores: two halves of several
/// chunks, or a key and what turning it leaves over. It has them for one half that stays as it is in any case.
const fn is_short(shape: Shape) -> bool {
    shape.head_dim() <= 128
}

fn normalise(shape: Shape, layer: &PrunedLayer, stage: usize) -> Option<Score> {
    scoring::soft(&layer.stages[stage]).then(|| Score::Normalise(Normalise::new(shape, layer, stage)))
}

/// Elements of [`Buffer::RowScores`] and of [`Buffer::Paths`] that a stage takes.
pub(super) fn row_storage(shape: Shape, layer: &PrunedLayer, stage: &StagePlan, extent: Extent) -> [usize; 2] {
    if !scoring::soft(stage) {
        return [0; 2];
    }
    let blocks = extent.rows.div_ceil(stage.query_block);
    let paths = scoring::descents(shape, layer, stage.index) * scoring::path_length(stage);
    [shape.query_heads() * stage.rows(), paths].map(|rows| blocks * rows * layer.chunks(stage.index, extent.tokens))
}
