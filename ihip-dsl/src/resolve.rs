//! From what was declared to the pipeline it is: every default filled in, every layer that differs set apart.

use std::collections::BTreeSet;

use crate::declared::{Declared, Field, Phase, Range, Slot, StageSlot, StageWords, Words, chosen, mode};
use crate::words::{QUERY_BLOCK, QUERY_STRIDE, REFRESH};
use crate::{
    Attention, Halving, LayerPruning, LayerRange, Phases, Pipeline, Representative, Rope, ScanRope, Scoring, Stage,
};

impl Declared {
    /// The pipeline that a declaration with all its constants known is, once it has passed every rule.
    ///
    /// # Panics
    /// Where it has not.
    #[must_use]
    pub fn pipeline(&self, name: &str, doc: &str) -> Pipeline {
        let phases = |layer| self.phases(layer).expect("a declaration is checked before it becomes a pipeline");
        let ranges: Vec<_> = self.ranges().iter().filter_map(Range::known).collect();
        let bounds: BTreeSet<u32> = ranges.iter().flat_map(|(first, last)| [*first, *last + 1]).collect();
        let bounds: Vec<_> = bounds.into_iter().collect();
        let parts = bounds.windows(2).map(|bounds| (bounds[0], bounds[1] - 1));
        let overrides = parts
            .filter(|(first, _)| ranges.iter().any(|(start, end)| (start..=end).contains(&first)))
            .map(|(first, last)| LayerRange { first, last, phases: phases(Some(first)) })
            .collect();
        let refresh = mode(self.refresh()).unwrap_or_default();
        Pipeline::from_checked(name.to_owned().into(), doc.to_owned().into(), refresh, phases(None), overrides)
    }

    /// The layers of every `layers`, inherited ones included.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        let mut ranges = self.parent.map(Self::ranges).unwrap_or_default();
        ranges.extend(self.blocks.iter().filter_map(|block| block.layers));
        ranges
    }

    /// `None` where a rule is broken.
    fn phases(&self, layer: Option<u32>) -> Option<Phases> {
        Some(Phases {
            prefill: self.words(layer, Phase::Prefill).attention()?,
            decode: self.words(layer, Phase::Decode).attention()?,
        })
    }
}

impl Words {
    fn attention(&self) -> Option<Attention> {
        if self.dense.is_some() {
            return Some(Attention::Dense);
        }
        let default = or(self.get(Slot::QueryBlock), QUERY_BLOCK)?;
        let stages = self.stages[..self.count].iter().map(|stage| stage.stage(default)).collect::<Option<Vec<_>>>()?;
        let staged = !stages.is_empty();
        Some(Attention::Pruned(LayerPruning {
            sink: self.get(Slot::Sink).value()?,
            window: self.get(Slot::Window).value()?,
            query_block: stages.last().map_or(default, |stage| stage.query_block),
            keep: if staged { self.get(Slot::Keep).value()? } else { 0 },
            ranking: mode(self.get(Slot::Ranking))?,
            rope: Rope {
                scan: if staged { chosen(self.get(Slot::Scan))? } else { ScanRope::None },
                attend: chosen(self.get(Slot::AttendRope))?,
            },
            stages: stages.into(),
        }))
    }
}

impl StageWords {
    fn stage(&self, query_block: u32) -> Option<Stage> {
        let keep = self.get(StageSlot::Keep);
        let rope = self.get(StageSlot::Rope);
        Some(Stage {
            keep: if keep.is_absent() { None } else { Some(keep.value()?) },
            chunk: self.get(StageSlot::Chunk).value()?,
            query_block: or(self.get(StageSlot::QueryBlock), query_block)?,
            query_stride: or(self.get(StageSlot::QueryStride), QUERY_STRIDE)?,
            refresh: or(self.get(StageSlot::Refresh), REFRESH)?,
            scoring: self.scoring()?,
            rope: if rope.is_absent() { None } else { Some(chosen(rope)?) },
        })
    }

    fn scoring(&self) -> Option<Scoring> {
        let halving = Halving {
            probe: self.mode(StageSlot::Probe)?,
            chunk_score: self.mode(StageSlot::ChunkScore)?,
            descent: self.mode(StageSlot::Descent)?,
        };
        Some(Scoring {
            representative: match self.mode(StageSlot::Representative)? {
                Representative::Halving(_) => Representative::Halving(halving),
                other => other,
            },
            query_reduction: self.mode(StageSlot::QueryReduction)?,
            scores: self.mode(StageSlot::Scores)?,
        })
    }
}

/// The number that was written, or `default` where none was.
const fn or(field: Field, default: u32) -> Option<u32> {
    if field.is_absent() { Some(default) } else { field.value() }
}
