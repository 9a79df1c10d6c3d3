//! What stands for a chunk's keys without reading them: their mean, or their bounds element by element. Both are
//! computed once, when the last key of a chunk is appended.

use std::ops::Range;

use ihip_dsl::{LayerPlan, Plan, PrunedLayer, Representative, StagePlan};

/// The summaries of one kind of the chunks of one length, `[kv_heads][chunks][width]`.
#[derive(Debug)]
pub(super) struct Summaries {
    layout: Layout,
    kv_heads: usize,
    /// Elements of a summary.
    width: usize,
    values: Vec<f32>,
}

/// Which chunks are summarised, and how. Stages that agree on it share their summaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    kind: Kind,
    /// Tokens before the first chunk.
    sink: usize,
    /// Tokens in a chunk.
    chunk: usize,
}

/// What a summary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The mean of the keys.
    Mean,
    /// Their greatest elements, then their least.
    Bounds,
}

impl Layout {
    /// `None` where the stage scores by the keys themselves.
    fn of(layer: &PrunedLayer, stage: &StagePlan) -> Option<Self> {
        let kind = match stage.scoring.representative {
            Representative::Mean => Kind::Mean,
            Representative::MinMax => Kind::Bounds,
            Representative::Halving(_) | Representative::Exact => return None,
        };
        Some(Self { kind, sink: layer.sink, chunk: stage.chunk })
    }

    /// Those that the stages of `layer` read in either phase, each once.
    fn of_layer(plan: &Plan, layer: usize) -> Vec<Self> {
        let mut layouts = Vec::new();
        for phase in plan.phases(layer) {
            let LayerPlan::Pruned(pruned) = phase else { continue };
            for layout in pruned.stages.iter().filter_map(|stage| Self::of(pruned, stage)) {
                if !layouts.contains(&layout) {
                    layouts.push(layout);
                }
            }
        }
        layouts
    }

    /// Chunks that are whole after so many `tokens`.
    const fn complete(self, tokens: usize) -> usize {
        tokens.saturating_sub(self.sink) / self.chunk
    }

    /// Elements of a summary of keys of `head_dim` elements.
    const fn width(self, head_dim: usize) -> usize {
        match self.kind {
            Kind::Mean => head_dim,
            Kind::Bounds => 2 * head_dim,
        }
    }
}

impl Summaries {
    /// Room for everything that the stages of `layer` read, in a cache of `capacity` tokens.
    pub(super) fn of_layer(plan: &Plan, layer: usize, capacity: usize) -> Vec<Self> {
        let geometry = plan.geometry();
        let (kv_heads, head_dim) = (geometry.kv_heads as usize, geometry.head_dim as usize);
        let room = |layout: Layout| {
            let width = layout.width(head_dim);
            Self { layout, kv_heads, width, values: vec![0.0; kv_heads * layout.complete(capacity) * width] }
        };
        Layout::of_layer(plan, layer).into_iter().map(room).collect()
    }

    /// Elements that [`Self::of_layer`] has room for.
    pub(super) fn elements(plan: &Plan, layer: usize, capacity: usize) -> usize {
        let geometry = plan.geometry();
        let width = |layout: Layout| layout.width(geometry.head_dim as usize);
        let layouts = Layout::of_layer(plan, layer).into_iter();
        layouts.map(|layout| geometry.kv_heads as usize * layout.complete(capacity) * width(layout)).sum()
    }

    /// Those among `all` that a stage of `layer` reads, if it reads any.
    pub(super) fn of_stage<'a>(all: &'a [Self], layer: &PrunedLayer, stage: &StagePlan) -> Option<&'a Self> {
        let layout = Layout::of(layer, stage)?;
        all.iter().find(|summaries| summaries.layout == layout)
    }

    /// Elements of a summary.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The summary of one head of the chunk that begins at `left`.
    pub(super) fn of_chunk(&self, kv_head: usize, left: usize) -> &[f32] {
        let length = self.values.len() / self.kv_heads;
        let number = (left - self.layout.sink) / self.layout.chunk;
        &self.values[kv_head * length + number * self.width..][..self.width]
    }

    /// Summarises the chunks that the tokens at positions `appended` complete; `key` gives that of a head at a position.
    pub(super) fn append<'a>(&mut self, key: impl Fn(usize, usize) -> &'a [f32], appended: Range<usize>) {
        let Self { layout, kv_heads, width, ref mut values } = *self;
        let length = values.len() / kv_heads;
        for kv_head in 0..kv_heads {
            for number in layout.complete(appended.start)..layout.complete(appended.end) {
                let left = layout.sink + number * layout.chunk;
                let keys = (left..left + layout.chunk).map(|position| key(kv_head, position));
                let summary = &mut values[kv_head * length + number * width..][..width];
                match layout.kind {
                    Kind::Mean => mean(keys, layout.chunk, summary),
                    Kind::Bounds => bounds(keys, summary),
                }
            }
        }
    }
}

/// The sum in ascending order of positions, then divided.
fn mean<'a>(keys: impl Iterator<Item = &'a [f32]>, count: usize, summary: &mut [f32]) {
    summary.fill(0.0);
    for key in keys {
        for (sum, value) in summary.iter_mut().zip(key) {
            *sum += value;
        }
    }
    summary.iter_mut().for_each(|sum| *sum /= count as f32);
}

fn bounds<'a>(keys: impl Iterator<Item = &'a [f32]>, summary: &mut [f32]) {
    let (greatest, least) = summary.split_at_mut(summary.len() / 2);
    greatest.fill(f32::NEG_INFINITY);
    least.fill(f32::INFINITY);
    for key in keys {
        for ((greatest, least), value) in greatest.iter_mut().zip(&mut *least).zip(key) {
            *greatest = greatest.max(*value);
            *least = least.min(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use ihip_dsl::{Geometry, KvType, parse_str};

    use super::*;

    /// Two stages with bounds of the same chunks, and two kinds of summaries of chunks of 3.
    const PIPELINE: &str = "
        pub Cheap {
            sink 6; window 32;
            stage { chunk 12, representative min_max }
            stage { keep 48, chunk 12, representative min_max }
            stage { keep 24, chunk 3, representative mean }
            stage { keep 24, chunk 3, representative exact }
            attend { keep 6 }
            rope { scan relative, attend streaming }
        }";
    const SINK: usize = 6;
    const HEAD_DIM: usize = 2;
    const TOKENS: usize = 60;

    fn plan() -> Plan {
        let pipeline = parse_str(PIPELINE).expect("a valid pipeline").remove(0);
        let geometry = Geometry {
            query_heads: 2,
            kv_heads: 2,
            head_dim: HEAD_DIM as u32,
            kv_type: KvType::F32,
            page: 16,
            query_scale: 1.0,
            trained: 8192,
        };
        Plan::new(&pipeline, geometry, vec![1.0], 1).expect("a layer")
    }

    #[test]
    fn stages_of_the_same_chunks_share_their_summaries() {
        let plan = plan();
        let LayerPlan::Pruned(layer) = plan.prefill(0) else { panic!("a pruned layer") };
        let all = Summaries::of_layer(&plan, 0, TOKENS);
        assert_eq!(all.len(), 2);
        let of = |stage: usize| Summaries::of_stage(&all, layer, &layer.stages[stage]).map(std::ptr::from_ref);
        assert_eq!(of(0), Some(&raw const all[0]));
        assert_eq!(of(1), Some(&raw const all[0]));
        assert_eq!(of(2), Some(&raw const all[1]));
        assert_eq!(of(3), None);
        // 4 chunks of 12 and 18 of 3 after the sinks, in two heads.
        assert_eq!(Summaries::elements(&plan, 0, TOKENS), 2 * (4 * 2 + 18) * HEAD_DIM);
        assert_eq!(all.iter().map(|summaries| summaries.values.len()).sum::<usize>(), 2 * (4 * 2 + 18) * HEAD_DIM);
    }

    #[test]
    fn a_summary_is_computed_once_and_stays_right_whatever_the_steps_are() {
        let mut all = Summaries::of_layer(&plan(), 0, TOKENS);
        let keys: Vec<f32> = (0..2 * TOKENS * HEAD_DIM).map(|element| (element as f32 * 0.7).sin()).collect();
        let keys: Vec<&[f32]> = keys.chunks(TOKENS * HEAD_DIM).collect();
        // Prefill steps with ragged ends, then decoding; keys that have been summarised are spoilt.
        let mut written = vec![vec![f32::NAN; TOKENS * HEAD_DIM]; 2];
        let mut start = 0;
        for rows in [10, 16, 1, 20].into_iter().chain([1; 13]) {
            let appended = start..start + rows;
            let elements = appended.start * HEAD_DIM..appended.end * HEAD_DIM;
            for (written, keys) in written.iter_mut().zip(&keys) {
                written[elements.clone()].copy_from_slice(&keys[elements.clone()]);
            }
            for summaries in &mut all {
                summaries.append(|head, position| &written[head][position * HEAD_DIM..][..HEAD_DIM], appended.clone());
            }
            start += rows;
            let summarised = start.saturating_sub(SINK) / 12 * 12;
            if summarised > 0 {
                written.iter_mut().for_each(|written| written[..(SINK + summarised) * HEAD_DIM].fill(f32::NAN));
            }
        }
        assert_eq!(start, TOKENS);
        for summaries in &all {
            let chunk = summaries.layout.chunk;
            for (head, keys) in keys.iter().enumerate() {
                for left in (SINK..TOKENS).step_by(chunk).take(summaries.layout.complete(TOKENS)) {
                    let summary = summaries.of_chunk(head, left);
                    assert_eq!(summary.len(), summaries.width());
                    for element in 0..HEAD_DIM {
                        let of_chunk = || (left..left + chunk).map(|token| keys[token * HEAD_DIM + element]);
                        match summaries.layout.kind {
                            Kind::Mean => assert_eq!(summary[element], of_chunk().sum::<f32>() / chunk as f32),
                            Kind::Bounds => {
                                assert_eq!(summary[element], of_chunk().fold(f32::MIN, f32::max));
                                assert_eq!(summary[HEAD_DIM + element], of_chunk().fold(f32::MAX, f32::min));
                            }
                        }
                    }
                }
            }
        }
    }
}
