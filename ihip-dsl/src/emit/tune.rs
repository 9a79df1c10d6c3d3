//! Which kernels have a tuning, and how a choice reaches them.

use super::functions::Shape;
use super::score::Score;
use super::unit::Unit;
use super::units::Emit;
use crate::tuning::{Tuning, Tunings};

/// A kernel by its constants, of which some may be chosen freely.
pub(super) trait Tune: Sized {
    /// Its name in a pipeline.
    fn stem(&self, pipeline: &str) -> String;

    /// What is chosen now; `None` where there is nothing to choose.
    fn tuning(&self) -> Option<Tuning>;

    /// Every choice there is, as far as the kernel's own arithmetic allows: what the compiler and the chip say is found
    /// out by trying.
    fn space(&self) -> Vec<Tuning>;

    /// The same with another choice; one for another family changes nothing.
    fn tuned(self, tuning: Tuning) -> Self;

    /// What [`Tunings`] call it.
    fn site(&self, shape: Shape) -> String {
        let stem = self.stem("");
        let kernel = stem.strip_prefix("ihip__").unwrap_or(&stem);
        format!("{kernel}_h{}_{}", shape.query_heads(), shape.kv_heads())
    }

    /// The same with what is chosen for it; a choice outside of the space is as if there were none.
    fn chosen(self, shape: Shape, tunings: &Tunings) -> Self {
        if self.tuning().is_none() {
            return self;
        }
        let chosen = tunings.get(&self.site(shape)).filter(|tuning| self.space().contains(tuning));
        match chosen {
            Some(tuning) => self.tuned(tuning),
            None => self,
        }
    }
}

impl Tune for Unit {
    fn stem(&self, pipeline: &str) -> String {
        Emit::stem(self, pipeline)
    }

    fn tuning(&self) -> Option<Tuning> {
        match self {
            Self::Score(unit) => unit.tuning(),
            Self::AttendTiles(unit) => unit.tuning(),
            Self::AttendRow(unit) => unit.tuning(),
            Self::DenseRow(unit) => unit.tuning(),
            Self::Append(_)
            | Self::Summarise(_)
            | Self::Select(_)
            | Self::Attend(_)
            | Self::AttendGroups(_)
            | Self::Gather(_)
            | Self::SplitDense(_)
            | Self::Merge(_) => None,
        }
    }

    fn space(&self) -> Vec<Tuning> {
        match self {
            Self::Score(unit) => unit.space(),
            Self::AttendTiles(unit) => unit.space(),
            Self::AttendRow(unit) => unit.space(),
            Self::DenseRow(unit) => unit.space(),
            Self::Append(_)
            | Self::Summarise(_)
            | Self::Select(_)
            | Self::Attend(_)
            | Self::AttendGroups(_)
            | Self::Gather(_)
            | Self::SplitDense(_)
            | Self::Merge(_) => Vec::new(),
        }
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match self {
            Self::Score(unit) => Self::Score(unit.tuned(tuning)),
            Self::AttendTiles(unit) => Self::AttendTiles(unit.tuned(tuning)),
            Self::AttendRow(unit) => Self::AttendRow(unit.tuned(tuning)),
            Self::DenseRow(unit) => Self::DenseRow(unit.tuned(tuning)),
            other => other,
        }
    }
}

impl Tune for Score {
    fn stem(&self, pipeline: &str) -> String {
        self.stem(pipeline)
    }

    fn tuning(&self) -> Option<Tuning> {
        match self {
            Self::ScanTiles(score) => score.tuning(),
            Self::ScanKeysTiles(score) => score.tuning(),
            Self::ScanColumns(score) => score.tuning(),
            Self::ScanRow(score) => score.tuning(),
            Self::ScanKeysRow(score) => score.tuning(),
            Self::Scan(_) | Self::ScanKeys(_) | Self::Normalise(_) => None,
        }
    }

    fn space(&self) -> Vec<Tuning> {
        match self {
            Self::ScanTiles(score) => score.space(),
            Self::ScanKeysTiles(score) => score.space(),
            Self::ScanColumns(score) => score.space(),
            Self::ScanRow(score) => score.space(),
            Self::ScanKeysRow(score) => score.space(),
            Self::Scan(_) | Self::ScanKeys(_) | Self::Normalise(_) => Vec::new(),
        }
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match self {
            Self::ScanTiles(score) => Self::ScanTiles(score.tuned(tuning)),
            Self::ScanKeysTiles(score) => Self::ScanKeysTiles(score.tuned(tuning)),
            Self::ScanColumns(score) => Self::ScanColumns(score.tuned(tuning)),
            Self::ScanRow(score) => Self::ScanRow(score.tuned(tuning)),
            Self::ScanKeysRow(score) => Self::ScanKeysRow(score.tuned(tuning)),
            other => other,
        }
    }
}
