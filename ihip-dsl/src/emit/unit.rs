//! One kernel of a program, whatever its family, and which of them a layer needs.

use super::Kernel;
use super::append::Append;
use super::attend::Attend;
use super::attend_groups::AttendGroups;
use super::attend_row::AttendRow;
use super::attend_tiles::AttendTiles;
use super::decode::{Merge, SplitDense};
use super::dense_row::DenseRow;
use super::functions::Shape;
use super::gather::Gather;
use super::probes::Kept;
use super::program::Instructions;
use super::score::Score;
use super::select::Select;
use super::summarise::Summarise;
use super::tune::Tune as _;
use super::units::Emit;
use crate::LayerPlan;

/// One kernel, by the constants that make up its text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unit {
    Append(Append),
    Summarise(Summarise),
    Score(Score),
    Select(Select),
    Attend(Attend),
    AttendTiles(AttendTiles),
    AttendGroups(AttendGroups),
    AttendRow(AttendRow),
    DenseRow(DenseRow),
    Gather(Gather),
    SplitDense(SplitDense),
    Merge(Merge),
}

impl Emit for Unit {
    fn stem(&self, pipeline: &str) -> String {
        match self {
            Self::Append(unit) => unit.stem(pipeline),
            Self::Summarise(unit) => unit.stem(pipeline),
            Self::Score(unit) => unit.stem(pipeline),
            Self::Select(unit) => unit.stem(pipeline),
            Self::Attend(unit) => unit.stem(pipeline),
            Self::AttendTiles(unit) => unit.stem(pipeline),
            Self::AttendGroups(unit) => unit.stem(pipeline),
            Self::AttendRow(unit) => unit.stem(pipeline),
            Self::DenseRow(unit) => unit.stem(pipeline),
            Self::Gather(unit) => unit.stem(pipeline),
            Self::SplitDense(unit) => unit.stem(pipeline),
            Self::Merge(unit) => unit.stem(pipeline),
        }
    }

    fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        match self {
            Self::Append(unit) => unit.emit(pipeline, name),
            Self::Summarise(unit) => unit.emit(pipeline, name),
            Self::Score(unit) => unit.emit(pipeline, name),
            Self::Select(unit) => unit.emit(pipeline, name),
            Self::Attend(unit) => unit.emit(pipeline, name),
            Self::AttendTiles(unit) => unit.emit(pipeline, name),
            Self::AttendGroups(unit) => unit.emit(pipeline, name),
            Self::AttendRow(unit) => unit.emit(pipeline, name),
            Self::DenseRow(unit) => unit.emit(pipeline, name),
            Self::Gather(unit) => unit.emit(pipeline, name),
            Self::SplitDense(unit) => unit.emit(pipeline, name),
            Self::Merge(unit) => unit.emit(pipeline, name),
        }
    }
}

/// The kernel that attends in prefill.
pub(super) fn attend_of(shape: Shape, kind: &LayerPlan, instructions: Instructions) -> Unit {
    if instructions == Instructions::Hopper
        && let Some(attend) = AttendGroups::new(shape, kind)
    {
        return Unit::AttendGroups(attend);
    }
    AttendTiles::new(shape, kind).map_or_else(|| Unit::Attend(Attend::new(shape, kind)), Unit::AttendTiles)
}

/// Kernels that layers of `kind` need in prefill, if there are any, and those that need them in decoding, of which it is
/// known whether they have an attention that appends, in the order in which a layer launches them. Decoding reads kept
/// probes in `levels` halvings.
pub(super) fn units_of(
    shape: Shape,
    instructions: Instructions,
    kind: &LayerPlan,
    prefill: bool,
    appending: &[bool],
    levels: usize,
) -> Vec<Unit> {
    let decode = !appending.is_empty();
    let mut units = vec![Unit::Append(Append::new(shape, kind.rotated_cache()))];
    if let LayerPlan::Pruned(layer) = kind {
        units.extend(layer.stages.iter().filter_map(|stage| Summarise::new(shape, layer, stage)).map(Unit::Summarise));
        for stage in 0..layer.stages.len() {
            units.extend(prefill.then(|| Score::prefill(shape, layer, stage)).into_iter().flatten().map(Unit::Score));
            let kept = Kept::of(shape, kind, stage, levels);
            let scores = decode.then(|| Score::decode(shape, layer, stage)).into_iter().flatten();
            units.extend(scores.map(|score| Unit::Score(score.keeping(kept))));
            units.push(Unit::Select(Select::new(shape, layer, stage)));
        }
    }
    units.extend(prefill.then(|| attend_of(shape, kind, instructions)));
    if decode {
        match kind {
            LayerPlan::Pruned(layer) => {
                let alone = !layer.stages.is_empty() || appending.contains(&false);
                units.extend(alone.then(|| Unit::AttendRow(AttendRow::new(shape, layer))));
                let reuses = appending.contains(&true).then(|| AttendRow::appending(shape, layer)).flatten();
                units.extend(reuses.map(Unit::AttendRow));
            }
            LayerPlan::Dense => units.extend(match DenseRow::new(shape) {
                Some(dense) => vec![Unit::DenseRow(dense)],
                None => vec![Unit::SplitDense(SplitDense::new(shape)), Unit::Merge(Merge::new(shape))],
            }),
        }
    }
    units
}
