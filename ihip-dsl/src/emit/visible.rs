//! Which keys an attention kernel goes through, and at which rotary positions: the part in which pruned and dense
//! layers differ.

use super::functions::{self, Shape};
use super::launch::Element;
use super::writer::Writer;
use super::{Argument, ArgumentKind};
use crate::{AttendRope, LayerPlan, Ranking};

/// The keys of a layer, by the constants that an attention kernel depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Visible {
    /// Every key up to the query's own.
    All,
    /// Sinks, window and a block list.
    Pruned {
        sink: usize,
        window: usize,
        query_block: usize,
        block: usize,
        /// Blocks of the list; 0 where there is none.
        keep_blocks: usize,
        ranking: Ranking,
        rope: AttendRope,
    },
}

/// Which of the two attention kernels reads the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Phase {
    Prefill,
    /// One query a step, so one query block and no `block`.
    Decode,
}

impl Visible {
    pub(crate) fn new(kind: &LayerPlan) -> Self {
        match kind {
            LayerPlan::Dense => Self::All,
            LayerPlan::Pruned(layer) => Self::Pruned {
                sink: layer.sink,
                window: layer.window,
                query_block: layer.query_block,
                block: layer.block,
                keep_blocks: if layer.stages.is_empty() { 0 } else { layer.keep_blocks },
                // Without a list there is nothing to rank.
                ranking: if layer.stages.is_empty() { Ranking::All } else { layer.ranking },
                rope: layer.attend_rope,
            },
        }
    }

    /// Rotary positions, where kernels rotate at all.
    pub(crate) fn rotates(&self) -> bool {
        matches!(self, Self::Pruned { rope: AttendRope::Streaming | AttendRope::Infllm, .. })
    }

    /// Declares the rotary positions of a tile's slots, where there are any.
    pub(crate) fn position_array(&self) -> &'static str {
        if self.rotates() { "    SHARED(int, slot_position, TILE_KEYS);\n" } else { "" }
    }

    pub(crate) fn has_list(&self) -> bool {
        matches!(self, Self::Pruned { keep_blocks: 1.., .. })
    }

    /// Query heads that read the same list.
    pub(crate) fn ranking(&self) -> Ranking {
        match self {
            Self::All => Ranking::All,
            Self::Pruned { ranking, .. } => *ranking,
        }
    }

    /// The middle of a kernel's name: `attend_all`, `attend_decode_streaming_k2048`, …
    pub(crate) fn stem(&self, pipeline: &str, phase: Phase, shape: Shape) -> String {
        let suffix = shape.suffix();
        let phase = if phase == Phase::Decode { "_decode" } else { "" };
        match self {
            Self::All => format!("ihip_{pipeline}_attend_all{phase}_{suffix}"),
            Self::Pruned { block, keep_blocks, ranking, rope, .. } => {
                let ranking = functions::ranking_word(*ranking);
                let rope = match rope {
                    AttendRope::Streaming => "streaming",
                    AttendRope::Infllm => "infllm",
                    AttendRope::DynamicExtend => "dynamic_extend",
                    AttendRope::SelfExtend => "self_extend",
                    AttendRope::None => "plain",
                };
                format!("ihip_{pipeline}_attend{phase}_{rope}{ranking}_k{}_{suffix}", keep_blocks * block)
            }
        }
    }

    /// Constants of the layer.
    pub(crate) fn constants(&self, writer: &mut Writer, shape: Shape) {
        if let Self::Pruned { sink, window, query_block, block, keep_blocks, ranking, .. } = self {
            writer
                .constant("SINK", sink, "first tokens, which every query sees")
                .constant("WINDOW", window, "most recent tokens, which every query sees")
                .constant("QUERY_BLOCK", query_block, "queries that share a block list");
            functions::ranking_constant(writer, *ranking, shape.rankings(*ranking));
            if self.has_list() {
                writer.constant("BLOCK", block, "tokens of a block of the list").constant(
                    "KEEP",
                    keep_blocks,
                    "entries of a list; beyond its count they are not read",
                );
            }
        }
    }

    /// Parameters between the page table and the outputs.
    pub(crate) fn parameters(&self) -> String {
        let mut text = String::new();
        if self.rotates() {
            text.push_str(" const float2* __restrict__ rope_table,");
        }
        if self.has_list() {
            text.push_str(" const int* blocks, const int* counts,");
        }
        text
    }

    /// The same as data, preceded by what every attention kernel reads.
    pub(crate) fn arguments(&self, shape: Shape) -> Vec<Argument> {
        let cached = Element::from(shape.kv());
        let input = |name, element| Argument { name, kind: ArgumentKind::Input(element) };
        let mut arguments = vec![
            input("step", Element::I32),
            input("qkv", shape.activation.element()),
            input("keys", cached),
            input("values", cached),
            input("page_table", Element::U32),
        ];
        if self.rotates() {
            arguments.push(input("rope_table", Element::Float2));
        }
        if self.has_list() {
            arguments.push(input("blocks", Element::I32));
            arguments.push(input("counts", Element::I32));
        }
        arguments
    }

    /// Defines `count`, `list` and the origin of rotary positions for the query block `block` whose first query is
    /// at `first_position`.
    pub(crate) fn origin(&self, phase: Phase) -> String {
        let Self::Pruned { rope, .. } = self else { return String::new() };
        let mut text = String::new();
        if self.has_list() {
            let (declared, list, row) = match (phase, self.ranking()) {
                (Phase::Prefill, Ranking::All) => ("", "blocks + block * KEEP", "block"),
                (Phase::Prefill, Ranking::KvGroup) => {
                    ("    const int ranked = block * RANKINGS + kv_head;\n", "blocks + ranked * KEEP", "ranked")
                }
                (Phase::Prefill, Ranking::Each) => {
                    ("    const int ranked = block * RANKINGS + first_head;\n", "blocks + ranked * KEEP", "ranked")
                }
                (Phase::Decode, Ranking::All) => ("", "blocks", "0"),
                (Phase::Decode, Ranking::KvGroup) => ("", "blocks + kv_head * KEEP", "kv_head"),
                (Phase::Decode, Ranking::Each) => ("", "blocks + first_head * KEEP", "first_head"),
            };
            text.push_str(&format!(
                "{declared}    const int* const list = {list};\n    const int count = counts[{row}];\n"
            ));
        }
        let first_position = if phase == Phase::Prefill { "first_position" } else { "position" };
        let listed = if self.has_list() { " - count * BLOCK" } else { "" };
        match rope {
            AttendRope::Streaming => text.push_str(&format!(
                "    // Kept keys are packed to end one window before the block's first query, sinks right before them. Only\n\
                 \x20   // differences of positions matter, so all are counted from the first sink's: the table stays short.\n\
                 \x20   const int packed = {first_position} - WINDOW - SINK{listed} + 1, origin = max(0, packed);\n"
            )),
            AttendRope::Infllm => text.push_str(&format!(
                "    // Sinks and kept keys all stand at the window's distance; positions are counted from there.\n\
                 \x20   const int origin = max(0, {first_position} - WINDOW);\n"
            )),
            AttendRope::DynamicExtend | AttendRope::SelfExtend => {
                unreachable!("no word of the language leads here yet")
            }
            AttendRope::None => {}
        }
        text
    }

    /// Rotary position of the `slot`-th token of the list, as an expression.
    pub(crate) fn listed_position(&self, slot: &str) -> String {
        match self {
            Self::Pruned { rope: AttendRope::Streaming, .. } => {
                format!("max(0, SINK + {slot} + packed) - origin")
            }
            _ => "0".to_owned(),
        }
    }

    /// Rotary position of the sink `token`, as an expression.
    pub(crate) fn sink_position(&self, token: &str) -> String {
        match self {
            Self::Pruned { rope: AttendRope::Streaming, .. } => format!("max(0, {token} + packed) - origin"),
            _ => "0".to_owned(),
        }
    }
}
