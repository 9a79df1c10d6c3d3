//! Keeps the best chunks of every query block, in ascending order.

use super::functions::{self, Shape};
use super::launch::Element;
use super::scan::chunks_here;
use super::scoring::{BLOCK_SCORES, scan_constants};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::{PrunedLayer, Ranking};

const THREADS: usize = 1024;

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
            .constant("WARPS", THREADS / 32, "warps of a block")
            .constant("BATCH", 2, "loads of a thread under way at a time while the list is written");
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
            ("", "block", BLOCK_SCORES)
        } else {
            (RANKING, "row", "static_cast<unsigned long long>(row) * score_stride")
        };
        writer.more(&PLACE.replace("$RANKING", ranking).replace("$SCORES", scores));
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        writer.more("    const int keep = min(KEEP, chunks);");
        writer.text(THRESHOLD);
        let start = if self.stage == 0 { "chunk_start(chunk)" } else { "chunk_start(kept, chunk)" };
        let (list, store, visible) = if self.block.is_some() {
            (format!("blocks + {row} * KEEP"), "entry = entry / BLOCK * BLOCK;\n                ", VISIBLE)
        } else {
            (format!("kept_chunks + {row} * (KEEP + 1)"), "", "")
        };
        writer.text(
            &COMPACT
                .replace("$ROW", &list)
                .replace("$START", start)
                .replace("$FLOOR", store)
                .replace("$DECLARED", if self.block.is_some() { "    unsigned visible = 0;\n" } else { "" })
                .replace("$VISIBLE\n", visible.trim_start_matches('\n')),
        );
        writer.more(&if self.block.is_some() {
            COUNT.replace("$ROW", row)
        } else {
            "    if (thread == 0) list[KEEP] = keep;\n}".to_owned()
        });
        Kernel {
            name: name.to_owned(),
            family: Family::Select,
            text: writer.finish(),
            arguments: self.arguments(),
            threads: THREADS as u32,
            shared_bytes: 0,
        }
    }

    fn arguments(&self) -> Vec<Argument> {
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
        arguments
    }
}

const NEVER: &str = r"
// -32000 as an ordered integer: the score of a chunk that no query probed. The buffer has 0 there.
constexpr unsigned NEVER = ~0xc6fa0000u;
";

const PLACE: &str = r"
    SHARED(unsigned, histogram, 256);
    SHARED(unsigned, found, 3);           // the digit at which the cut falls, what is left to take there, and how many have it
    SHARED(unsigned, warp_ones, WARPS);   // bits that are one in all scores of a warp's chunks
    SHARED(unsigned, warp_zeros, WARPS);  // and those that are zero
    SHARED(unsigned, warp_scored, WARPS); // how many of its chunks have a score at all
    SHARED(unsigned, warp_above, WARPS);  // how many are above the threshold
    SHARED(unsigned, warp_ties, WARPS);   // and how many at it

    const int rows = step[STEP_ROWS];
    const int block = blockIdx.x, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if (block * QUERY_BLOCK >= rows) return;
$RANKING    unsigned* const score = scores + $SCORES;
";

const RANKING: &str = r"    // Every ranking of a query block has a row of its own in scores and lists.
    const int ranking = blockIdx.y, row = block * RANKINGS + ranking;
";

const THRESHOLD: &str = r"
    // Neighbouring chunks are a warp's, so that warps in order have the list in order; its lanes take them side by side.
    const int each = (chunks + THREADS - 1) / THREADS * 32, first = warp * each, end = min(chunks, first + each);

    unsigned ones = ~0u, zeros = ~0u, scored = 0;
#pragma unroll 8
    for (int chunk = first + lane; chunk < end; chunk += 32) {
        const unsigned key = max(score[chunk], NEVER);
        if (key > NEVER) {
            ones &= key;
            zeros &= ~key;
            ++scored;
        }
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        ones &= shuffle_xor(ones, mask);
        zeros &= shuffle_xor(zeros, mask);
        scored += shuffle_xor(scored, mask);
    }
    if (lane == 0) {
        warp_ones[warp] = ones;
        warp_zeros[warp] = zeros;
        warp_scored[warp] = scored;
    }
    sync_block();
    ones = lane < WARPS ? warp_ones[lane] : ~0u;
    zeros = lane < WARPS ? warp_zeros[lane] : ~0u;
    scored = lane < WARPS ? warp_scored[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) {
        ones &= shuffle_xor(ones, mask);
        zeros &= shuffle_xor(zeros, mask);
        scored += shuffle_xor(scored, mask);
    }

    // The keep-th largest score, eight bits at a time from the first in which scores differ: of the chunks whose decided
    // bits are the threshold's, `ties` stay.
    unsigned threshold = NEVER, decided = ~0u, ties = keep - scored;
    if (scored >= keep) {
        int open = 32;
        while (open > 8 && ((ones | zeros) >> (open - 1) & 1) == 1) --open;
        decided = open < 32 ? ~0u << open : 0;
        threshold = ones & decided;
        ties = keep;
        unsigned alike = chunks;
        for (int shift = open - 8; alike > ties; shift = max(shift - 8, 0)) {
            if (thread < 256) histogram[thread] = 0;
            sync_block();
#pragma unroll 8
            for (int chunk = first + lane; chunk < end; chunk += 32) {
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
                    found[2] = histogram[digit];
                }
            }
            sync_block();
            threshold |= found[0] << shift;
            decided |= 255u << shift;
            ties = found[1];
            alike = shift > 0 ? found[2] : 0;
        }
    }
";

const COMPACT: &str = r"
    // The list is ascending: each warp counts what it takes and learns what warps before it take. In a tie the lower
    // position comes first.
    unsigned above = 0, tied = 0;
#pragma unroll 8
    for (int chunk = first + lane; chunk < end; chunk += 32) {
        const unsigned key = max(score[chunk], NEVER) & decided;
        above += key > threshold;
        tied += key == threshold;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        above += shuffle_xor(above, mask);
        tied += shuffle_xor(tied, mask);
    }
    if (lane == 0) {
        warp_above[warp] = above;
        warp_ties[warp] = tied;
    }
    sync_block();
    unsigned above_before = lane < warp ? warp_above[lane] : 0, tied_before = lane < warp ? warp_ties[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) {
        above_before += shuffle_xor(above_before, mask);
        tied_before += shuffle_xor(tied_before, mask);
    }
    int* const list = $ROW;
    const unsigned lanes_before = (1u << lane) - 1;
$DECLARED    for (int batch = first; batch < end; batch += 32 * BATCH) {
        unsigned keys[BATCH];
        for (int i = 0; i < BATCH; ++i) {
            const int chunk = batch + i * 32 + lane;
            keys[i] = chunk < end ? max(score[chunk], NEVER) & decided : 0;
        }
        for (int i = 0; i < BATCH && batch + i * 32 < end; ++i) {
            const int chunk = batch + i * 32 + lane;
            const bool is_above = keys[i] > threshold, is_tied = chunk < end && keys[i] == threshold;
            const unsigned above_lanes = ballot(is_above), tied_lanes = ballot(is_tied);
            const unsigned tied_here = tied_before + __popc(tied_lanes & lanes_before);
            if (is_above || (is_tied && tied_here < ties)) {
                int entry = $START;
                $FLOORlist[above_before + __popc(above_lanes & lanes_before) + min(tied_here, ties)] = entry;
$VISIBLE
            }
            above_before += __popc(above_lanes);
            tied_before += __popc(tied_lanes);
            if (chunk < end) score[chunk] = 0;
        }
    }
    for (int entry = keep + thread; entry < KEEP; entry += THREADS) list[entry] = -1;
";

const VISIBLE: &str = r"
                if (entry < step[STEP_START] + block * QUERY_BLOCK + QUERY_BLOCK) ++visible;
";

const COUNT: &str = r"
    // Blocks that begin beyond the query block count for nothing, not even for positions.
    for (int mask = 16; mask > 0; mask /= 2) visible += shuffle_xor(visible, mask);
    if (lane == 0) warp_ones[warp] = visible;
    sync_block();
    visible = lane < WARPS ? warp_ones[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) visible += shuffle_xor(visible, mask);
    if (thread == 0) counts[$ROW] = visible;
}
";
