//! Which keys an attention kernel goes through, and at which rotary positions: the part in which pruned and dense
//! layers differ.

use super::extend;
use super::functions::{self, ROTATE, Shape};
use super::launch::Element;
use super::tile::Tile;
use super::writer::Writer;
use super::{Argument, ArgumentKind};
use crate::rope::Extension;
use crate::{AttendRope, LayerPlan, PrunedLayer, Ranking};

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

impl Phase {
    /// Positions of a block's first query and behind its last one, as arguments.
    const fn queries(self) -> &'static str {
        match self {
            Self::Prefill => "first_position, end_position",
            Self::Decode => "position, position + 1",
        }
    }
}

impl Visible {
    pub(crate) fn new(kind: &LayerPlan) -> Self {
        match kind {
            LayerPlan::Dense => Self::All,
            LayerPlan::Pruned(layer) => Self::pruned(layer),
        }
    }

    /// The keys of a pruned layer.
    pub(crate) fn pruned(layer: &PrunedLayer) -> Self {
        Self::Pruned {
            sink: layer.sink,
            window: layer.window,
            query_block: layer.query_block,
            block: layer.block,
            keep_blocks: if layer.stages.is_empty() { 0 } else { layer.keep_blocks },
            // Without a list there is nothing to rank.
            ranking: if layer.stages.is_empty() { Ranking::All } else { layer.ranking },
            rope: layer.attend_rope,
        }
    }

    /// Rotary positions, where kernels rotate at all.
    pub(crate) fn rotates(&self) -> bool {
        matches!(self, Self::Pruned { rope, .. } if *rope != AttendRope::None)
    }

    /// How far keys are brought back, where they are.
    fn extension(&self) -> Option<Extension> {
        match self {
            Self::Pruned { rope: AttendRope::DynamicExtend, .. } => Some(Extension::DynamicExtend),
            Self::Pruned { rope: AttendRope::SelfExtend, .. } => Some(Extension::SelfExtend),
            Self::All | Self::Pruned { .. } => None,
        }
    }

    /// Whether keys beyond the trained length are brought back.
    pub(crate) fn extends(&self) -> bool {
        self.extension().is_some()
    }

    /// Whether a key has two rotary positions, whose cosines and sines are blended.
    pub(crate) fn blends(&self) -> bool {
        self.extension() == Some(Extension::DynamicExtend)
    }

    /// Declares the rotary positions of a tile's slots, where there are any.
    pub(crate) fn position_array(&self) -> &'static str {
        match (self.rotates(), self.blends()) {
            (false, _) => "",
            (true, false) => "    SHARED(int, slot_position, TILE_KEYS);\n",
            (true, true) => {
                "    SHARED(int, slot_position, TILE_KEYS);  // packed\n    SHARED(int, slot_extended, TILE_KEYS);  // drawn together\n"
            }
        }
    }

    /// Copies a tile of keys, rotated to the positions of their slots.
    pub(crate) fn load_keys(&self, keys: &Tile) -> String {
        match (self.rotates(), self.blends()) {
            (false, _) => keys.load_plain(),
            (true, false) => keys.load_turned(),
            (true, true) => keys.load_blended(),
        }
    }

    /// For keys in registers, `TEAMS` slots apart: what is loaded before the first, what leads to the next, and what
    /// turns one.
    pub(crate) fn follow_angles(&self) -> [&'static str; 3] {
        match (self.rotates(), self.blends()) {
            (false, _) => ["", "", ""],
            (true, false) => [FIRST_ANGLES, NEXT_ANGLES, TURN],
            (true, true) => ["", "", TURN_BLENDED],
        }
    }

    /// Device functions for rotary positions.
    pub(crate) fn functions(&self, writer: &mut Writer) {
        if self.rotates() {
            writer.text(ROTATE);
        }
        if let Some(extension) = self.extension() {
            extend::functions(writer, extension);
        }
        if self.blends() {
            extend::blend(writer);
        }
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
            self.extension_constants(writer, shape);
        }
    }

    /// Constants of the positions that keys are brought back to.
    pub(crate) fn extension_constants(&self, writer: &mut Writer, shape: Shape) {
        if let Some(extension) = self.extension() {
            extend::constants(writer, shape, extension);
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
        let queries = phase.queries();
        let (first_position, end) = match phase {
            Phase::Prefill => ("first_position", END_POSITION.trim_start_matches('\n')),
            Phase::Decode => ("position", ""),
        };
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
            AttendRope::DynamicExtend => text.push_str(&format!(
                "{end}    // Kept keys are packed to end one window before the block's first query, sinks right before them, and drawn\n\
                 \x20   // together besides. All positions are counted from the least of them: the table stays short.\n\
                 \x20   const int packed = {first_position} - WINDOW - SINK{listed} + 1;\n\
                 \x20   const int origin = max(0, min(packed, extension_origin({queries})));\n"
            )),
            AttendRope::SelfExtend => text.push_str(&format!(
                "{end}    // Positions are counted from the least of any key, in the window or before it: the table stays short.\n\
                 \x20   const int origin = max(0, min({first_position} - WINDOW + 1, extension_origin({queries})));\n"
            )),
            AttendRope::None => {}
        }
        text
    }

    /// Declares `variable`, which holds a slot's rotary position, behind another integer.
    pub(crate) fn declare(&self, variable: &str) -> String {
        match (self.rotates(), self.blends()) {
            (false, _) => String::new(),
            (true, false) => format!(", {variable} = 0"),
            (true, true) => format!(", {variable} = 0, extended = 0"),
        }
    }

    /// Sets `variable` to the rotary position of `token`, the `slot`-th of the list.
    pub(crate) fn place_listed(&self, phase: Phase, variable: &str, slot: &str) -> String {
        self.place(phase, variable, &format!("SINK + {slot}"), "token")
    }

    /// The same of the sink `token`.
    pub(crate) fn place_sink(&self, phase: Phase, variable: &str, token: &str) -> String {
        self.place(phase, variable, token, token)
    }

    /// The same of `token` in the window.
    pub(crate) fn place_recent(&self, variable: &str, token: &str) -> String {
        let both = if self.blends() { " = extended" } else { "" };
        self.statement(&format!("{variable}{both} = max(0, {token} - origin)"))
    }

    /// The same of `token`, the one with number `packed` among sinks and listed tokens.
    fn place(&self, phase: Phase, variable: &str, packed: &str, token: &str) -> String {
        let Self::Pruned { rope, .. } = self else { return String::new() };
        let queries = phase.queries();
        let packed = format!("max(0, {packed} + packed) - origin");
        let extended = format!("extended_position({token}, {queries}) - origin");
        match rope {
            AttendRope::None => String::new(),
            AttendRope::Infllm => self.statement(&format!("{variable} = 0")),
            AttendRope::Streaming => self.statement(&format!("{variable} = {packed}")),
            AttendRope::SelfExtend => self.statement(&format!("{variable} = {extended}")),
            AttendRope::DynamicExtend => {
                self.statement(&format!("{variable} = {packed}")) + &self.statement(&format!("extended = {extended}"))
            }
        }
    }

    fn statement(&self, statement: &str) -> String {
        if self.rotates() { format!("\n                {statement};") } else { String::new() }
    }

    /// Stores `variable` as the position of a thread's slot.
    pub(crate) fn store(&self, variable: &str) -> String {
        let mut text = String::new();
        if self.rotates() {
            text.push_str(&format!("            slot_position[thread] = token == NOWHERE ? 0 : {variable};\n"));
        }
        if self.blends() {
            text.push_str("            slot_extended[thread] = token == NOWHERE ? 0 : extended;\n");
        }
        text
    }
}

const END_POSITION: &str = r"
    const int end_position = first_position + min(QUERY_BLOCK, rows - block * QUERY_BLOCK);
";

/// Positions that an angle is turned on by at most, one more than which the table has.
pub(crate) const MOST_TEAMS: usize = 64;

const FIRST_ANGLES: &str = r"
    // Positions mostly follow one another: from a team's key to its next, angles turn by that of TEAMS positions.
    int turned_to = slot_position[team];
    float2 angle[4], onward[4];
    for (int e = 0; e < 4; ++e) {
        angle[e] = rope_table[turned_to * HALF + element + e];
        onward[e] = rope_table[TEAMS * HALF + element + e];
    }
";

const NEXT_ANGLES: &str = r"
        if (slot_position[slot] != turned_to) {
            const bool follows = slot_position[slot] == turned_to + TEAMS;
            turned_to = slot_position[slot];
            for (int e = 0; e < 4; ++e) {
                if (follows) {
                    rotate(angle[e].x, angle[e].y, onward[e]);
                } else {
                    angle[e] = rope_table[turned_to * HALF + element + e];
                }
            }
        }
";

const TURN: &str = r"
        for (int e = 0; e < 4; ++e) rotate(x[i].at[e], y[i].at[e], angle[e]);
";

const TURN_BLENDED: &str = r"
        const float2* const angles = &rope_table[slot_position[slot] * HALF + element];
        const float2* const extended = &rope_table[slot_extended[slot] * HALF + element];
        for (int e = 0; e < 4; ++e) rotate(x[i].at[e], y[i].at[e], blend(angles[e], extended[e]));
";
