//! Keeps the best chunks of every query block, in ascending order.

use super::functions::{self, Shape};
use super::launch::Element;
use super::scan::chunks_here;
use super::scoring::scan_constants;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::{PrunedLayer, Ranking};

const THREADS: usize = 512;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Select {
    layer: PrunedLayer,
    /// Rankings of a query block.
    rankings: usize,
    stage: usize,
    /// Chunks that stay.
    keep: usize,
    /// Block size where this is the last cut.
    block: Option<usize>,
}

impl Select {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Self {
        let next = layer.stages.get(stage + 1).and_then(|next| next.keep_chunks);
        let block = (stage + 1 == layer.stages.len()).then_some(layer.block);
        // The selection does not see how the scores came about.
        let mut constants = scan_constants(layer, stage);
        let plan = &mut constants.stages[stage];
        plan.rope = crate::ScanRope::None;
        plan.query_stride = 1;
        plan.halvings = 0;
        plan.scoring = crate::Scoring::default();
        let rankings = shape.rankings(layer.ranking);
        Self { layer: constants, rankings, stage, keep: next.unwrap_or(layer.keep_blocks), block }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        let chunk = self.layer.stages[self.stage].chunk;
        let ranking = functions::ranking_word(self.layer.ranking);
        format!("ihip_{pipeline}_s{}_select{ranking}_c{chunk}_k{}", self.stage, self.keep * chunk)
    }

    /// Blocks of threads for `blocks` query blocks.
    pub(crate) fn grid(&self, blocks: usize) -> [u32; 3] {
        [blocks as u32, self.rankings as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let stage = &self.layer.stages[self.stage];
        let shared = self.layer.ranking == Ranking::All;
        let (of_every, block) =
            if shared { ("query block", "query block") } else { ("ranking", "ranking of a query block") };
        let heading = format!(
            "Stage {}: keeps the {} best chunks of {} tokens of every {of_every}, the lower position first in a tie, in\n\
             ascending order. One block of threads a {block}; it leaves the scores at zero for their next use.",
            self.stage, self.keep, stage.chunk
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, stage {}", self.stage));
        writer.text(&functions::step_words());
        functions::chunk_list_constants(&mut writer, &self.layer, self.stage);
        writer
            .constant("KEEP", self.keep, "chunks that stay")
            .constant("THREADS", THREADS, "threads of a block")
            .constant("WARPS", THREADS / 32, "warps of a block");
        functions::ranking_constant(&mut writer, self.layer.ranking, self.rankings);
        if let Some(block) = self.block {
            writer.constant("BLOCK", block, "tokens of a block of the final list");
        }
        writer.text(NEVER);
        functions::chunk_list(&mut writer, self.stage);
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        let outputs = if self.block.is_some() { "int* blocks, int* counts" } else { "int* kept_chunks" };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step,{parents} unsigned* scores, {outputs}, int score_stride) {{"
        ));
        let (ranking, row, scores) = if shared {
            ("", "block", "block * score_stride")
        } else {
            (RANKING, "row", "static_cast<unsigned long long>(row) * score_stride")
        };
        writer.more(&PLACE.replace("$RANKING", ranking).replace("$SCORES", scores));
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        writer.more("    const int keep = min(KEEP, chunks);");
        writer.text(THRESHOLD);
        let start = if self.stage == 0 { "chunk_start(chunk)" } else { "chunk_start(kept, chunk)" };
        let (list, store, visible) = if self.block.is_some() {
            (format!("blocks + {row} * KEEP"), "entry = entry / BLOCK * BLOCK;\n            ", VISIBLE)
        } else {
            (format!("kept_chunks + {row} * (KEEP + 1)"), "", "")
        };
        writer.text(
            &COMPACT
                .replace("$ROW", &list)
                .replace("$START", start)
                .replace("$FLOOR", store)
                .replace("$DECLARED", if self.block.is_some() { "    int visible = 0;\n" } else { "" })
                .replace("$VISIBLE\n", visible.trim_start_matches('\n')),
        );
        writer.more(&if self.block.is_some() {
            COUNT.replace("$ROW", row)
        } else {
            "    if (thread == 0) list[KEEP] = keep;\n}".to_owned()
        });
        let mut arguments = vec![Argument { name: "step", kind: ArgumentKind::Input(Element::I32) }];
        if self.stage > 0 {
            arguments.push(Argument { name: "parents", kind: ArgumentKind::Input(Element::I32) });
        }
        arguments.push(Argument { name: "scores", kind: ArgumentKind::Output(Element::U32) });
        if self.block.is_some() {
            arguments.push(Argument { name: "blocks", kind: ArgumentKind::Output(Element::I32) });
            arguments.push(Argument { name: "counts", kind: ArgumentKind::Output(Element::I32) });
        } else {
            arguments.push(Argument { name: "kept_chunks", kind: ArgumentKind::Output(Element::I32) });
        }
        arguments.push(Argument { name: "score_stride", kind: ArgumentKind::I32 });
        Kernel {
            name: name.to_owned(),
            family: Family::Select,
            text: writer.finish(),
            arguments,
            threads: THREADS as u32,
            shared_bytes: 0,
        }
    }
}

const NEVER: &str = r"
// -32000 as an ordered integer: the score of a chunk that no query probed. The buffer has 0 there.
constexpr unsigned NEVER = ~0xc6fa0000u;
";

const PLACE: &str = r"
    SHARED(unsigned, histogram, 256);
    SHARED(unsigned, found, 2);                // the digit at which the cut falls, and what is left to take below it
    SHARED(unsigned, warp_above, WARPS);       // a tile's chunks above the threshold, warp by warp
    SHARED(unsigned, warp_ties, WARPS);        // and those at the threshold

    const int rows = step[STEP_ROWS];
    const int block = blockIdx.x, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if (block * QUERY_BLOCK >= rows) return;
$RANKING    unsigned* const score = scores + $SCORES;
";

const RANKING: &str = r"    // Every ranking of a query block has a row of its own in scores and lists.
    const int ranking = blockIdx.y, row = block * RANKINGS + ranking;
";

const THRESHOLD: &str = r"
    // The keep-th largest score, eight bits at a time: `ties` is how many chunks of exactly that score stay.
    unsigned threshold = 0, decided = 0, ties = keep;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (thread < 256) histogram[thread] = 0;
        sync_block();
        for (int chunk = thread; chunk < chunks; chunk += THREADS) {
            const unsigned key = max(score[chunk], NEVER);
            if ((key & decided) == threshold) atomic_add(&histogram[key >> shift & 255], 1);
        }
        sync_block();
        // A warp counts from the top: lane i has digits 255 - 8 * i down to 248 - 8 * i.
        if (warp == 0) {
            unsigned own = 0;
            for (int i = 0; i < 8; ++i) own += histogram[255 - 8 * lane - i];
            unsigned through = own;
            for (int distance = 1; distance < 32; distance *= 2) {
                const unsigned before = shuffle(through, max(lane - distance, 0));
                if (lane >= distance) through += before;
            }
            unsigned above = through - own;
            if (above < ties && ties <= through) {
                int digit = 255 - 8 * lane;
                while (above + histogram[digit] < ties) above += histogram[digit--];
                found[0] = digit;
                found[1] = ties - above;
            }
        }
        sync_block();
        if (keep > 0) {
            threshold |= found[0] << shift;
            ties = found[1];
        }
        decided |= 255u << shift;
    }
";

const COMPACT: &str = r"
    // The list is ascending, so taking chunks in order keeps it so, and takes the lower position in a tie.
    int* const list = $ROW;
$DECLARED    unsigned above = 0, tied = 0;
    for (int base = 0; base < chunks; base += THREADS) {
        const int chunk = base + thread;
        const unsigned key = chunk < chunks ? max(score[chunk], NEVER) : 0;
        const bool is_above = key > threshold && keep > 0, is_tied = key == threshold && keep > 0;
        const unsigned above_lanes = ballot(is_above), tied_lanes = ballot(is_tied);
        if (lane == 0) {
            warp_above[warp] = __popc(above_lanes);
            warp_ties[warp] = __popc(tied_lanes);
        }
        sync_block();
        unsigned above_before = above, tied_before = tied;
        for (int before = 0; before < WARPS; ++before) {
            if (before < warp) {
                above_before += warp_above[before];
                tied_before += warp_ties[before];
            }
            above += warp_above[before];
            tied += warp_ties[before];
        }
        const unsigned earlier_lanes = (1u << lane) - 1;
        above_before += __popc(above_lanes & earlier_lanes);
        tied_before += __popc(tied_lanes & earlier_lanes);
        if (is_above || (is_tied && tied_before < ties)) {
            int entry = $START;
            $FLOORlist[above_before + min(tied_before, ties)] = entry;
$VISIBLE
        }
        if (chunk < chunks) score[chunk] = 0;
        sync_block();
    }
    for (int entry = keep + thread; entry < KEEP; entry += THREADS) list[entry] = -1;
";

const VISIBLE: &str = r"
            if (entry < step[STEP_START] + block * QUERY_BLOCK + QUERY_BLOCK) ++visible;
";

const COUNT: &str = r"
    // Blocks that begin beyond the query block count for nothing, not even for positions.
    if (thread == 0) histogram[0] = 0;
    sync_block();
    atomic_add(&histogram[0], visible);
    sync_block();
    if (thread == 0) counts[$ROW] = histogram[0];
}
";
