//! Prefill on tensor cores: averaged queries are the rows of a product, the probes of eight chunks its columns.
//!
//! A warp takes 16 chunks of one head and keeps its descents in registers. Lanes load their parts of the probes straight
//! into the registers that the product takes them from; queries lie in shared memory as left factors. Warps of the heads of
//! a group stand side by side, so that the probes they share come from the nearest cache. Where the heads of a group
//! descend together, a warp has the rows of all of them, and loads their probes once.

use super::cached;
use super::extend;
use super::factor;
use super::factors::{Copies, Factors};
use super::functions::{self, CACHE_ROW, ORDERED, ROTATE, Shape};
use super::rows::{self, Heads, Rotation, Rows};
use super::scan::{chunks_here, heads_of, probe_texts, ranking_here};
use super::scoring::{self, BLOCK_SCORES, Output, Source, scan_constants, scoring_words, stem};
use super::tune::Tune;
use super::turned;
use super::writer::Writer;
use super::{Buffer, Family, Kernel};
use crate::tuning::{ScanPrefill, Tuning};
use crate::{ChunkScore, Descent, Halving, PrunedLayer, QueryReduction, Ranking, ScanRope, StagePlan};

/// Two products beside each other take the same queries. More blocks of threads would load the same queries more often.
const DEFAULT: ScanPrefill = ScanPrefill { warps: 8, chunks: 16, blocks: 1024 };
/// Probes that are turned take twice the registers, and both of a chunk take the same queries.
const TURNED: ScanPrefill = ScanPrefill { chunks: 8, ..DEFAULT };
/// Pages of a chunk of which the table is kept in shared memory, at most.
const MOST_PAGES: usize = 24;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanTiles {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
    halving: Halving,
    tuning: ScanPrefill,
}

impl ScanTiles {
    /// The kernel for a stage, where scores are of a head, or of the group that descends together.
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize, halving: Halving) -> Option<Self> {
        let layer = scan_constants(layer, stage);
        let scan = Self { shape, layer, stage, halving, tuning: DEFAULT };
        let (turned, extended) = (scan.rotation().turns_keys(), scan.rotation() == Rotation::Extended);
        let scan = if turned { Self { tuning: TURNED, ..scan } } else { scan };
        // One of the heads that descend together would have a score of its own.
        let own_head = scan.together() && scan.layer.ranking == Ranking::Each;
        // Where keys are brought back to, beside the rows of a group, is more than registers hold.
        let turns = !turned || turned::fits(shape) && !(extended && scan.together());
        (turns && factor::fits(shape) && !own_head && !scoring::soft(scan.plan())).then_some(scan)
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(crate) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        let blocks = rows.div_ceil(self.plan().query_block);
        let heads = self.shape.query_heads() / self.heads();
        let groups = chunks.div_ceil(self.at_once()).clamp(1, self.tuning.blocks.div_ceil(blocks * heads));
        [groups as u32, heads as u32, blocks as u32]
    }

    /// Chunks that a block of threads takes at a time.
    fn at_once(&self) -> usize {
        self.tuning.chunks * self.tuning.warps / self.teams()
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        scoring::operands(self.shape, &self.layer, self.stage, Source::Keys, Output::Scores, parents)
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    /// Whether heads of a group take the same halves.
    fn together(&self) -> bool {
        self.halving.descent == Descent::KvGroup
    }

    fn mean(&self) -> bool {
        self.plan().scoring.query_reduction == QueryReduction::Mean
    }

    fn rotation(&self) -> Rotation {
        match self.plan().rope {
            ScanRope::None => Rotation::None,
            ScanRope::Infllm => Rotation::Queries("SCAN_WINDOW"),
            ScanRope::Relative => Rotation::QueriesTwice,
            ScanRope::ChunkIndexed => Rotation::Chunks,
            ScanRope::DynamicExtend | ScanRope::SelfExtend => Rotation::Extended,
        }
    }

    /// The rows that a warp multiplies.
    fn factors(&self) -> Factors {
        let heads = if self.together() { Heads::Group(self.shape.group()) } else { Heads::One };
        let rows = Rows {
            rotation: self.rotation(),
            heads,
            mean: self.mean(),
            of_head: self.plan().rows(),
            warps: rows::warps(self.shape),
            least_warps: 1,
        };
        let copies = if self.rotation() == Rotation::QueriesTwice { Copies::Sides } else { Copies::One };
        Factors { shape: self.shape, rows, copies }
    }

    /// Heads of a group that descend on their own, side by side in a block of threads.
    fn teams(&self) -> usize {
        let (group, warps) = (self.shape.group(), self.tuning.warps);
        let allowed = |teams| !self.together() && group.is_multiple_of(teams) && warps.is_multiple_of(teams);
        self.factors().teams(allowed)
    }

    /// Heads of a block of threads.
    fn heads(&self) -> usize {
        if self.together() { self.shape.group() } else { self.teams() }
    }

    /// Pages that a chunk lies in at most.
    fn pages(&self) -> usize {
        (self.plan().chunk - 1) / self.shape.geometry.page as usize + 2
    }

    /// Whether the table of a warp's pages is kept in shared memory.
    fn holds_pages(&self) -> bool {
        self.pages() <= MOST_PAGES
    }

    fn heading(&self) -> String {
        let plan = self.plan();
        let (product, row) =
            if self.mean() { ("mean", "all averaged queries") } else { ("largest", "any averaged query") };
        let probe = match self.halving.chunk_score {
            ChunkScore::RunningMax => "any probe",
            ChunkScore::Last => "the last probe",
        };
        let heads = if self.together() { "the heads of a group" } else { "one head" };
        format!(
            "Prefill, stage {}: scores chunks of {} tokens for blocks of {} queries by {} halvings.\n\
             A warp takes {heads} of one query block and {} chunks at a time; a chunk's score is the {product}\n\
             product of {row} with {probe}, over {}.",
            self.stage,
            plan.chunk,
            plan.query_block,
            plan.halvings,
            self.tuning.chunks,
            heads_of(self.layer.ranking),
        )
    }

    fn constants(&self, writer: &mut Writer) {
        let (stage, factors, ScanPrefill { warps, chunks, .. }) = (self.plan(), self.factors(), self.tuning);
        self.shape.constants(writer);
        functions::chunk_list_constants(writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("HALVINGS", stage.halvings, "two probes each")
            .constant("QUERY_STRIDE", stage.query_stride, "neighbouring queries averaged into a row")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query")
            .float("NEVER", -32000.0, "score of a chunk without a probe")
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", 32 * warps, "threads of a block")
            .constant("WARPS", warps, "warps of a block")
            .constant("TEAMS", self.teams(), "heads of a block that descend on their own, each with warps of its own")
            .constant("CHUNKS", chunks, "chunks that a warp descends at a time")
            .constant("SETS", chunks / 8, "eights of them, each the columns of two products")
            .constant("SIDES", 2 / factors.copies(), "probes of a chunk that take the same copy of the queries");
        factors.constants(writer);
        if self.holds_pages() {
            writer.constant("PAGES", self.pages(), "pages that a chunk lies in at most");
        }
        if let Some(extension) = extend::of_scan(stage.rope) {
            extend::constants(writer, self.shape, extension);
        }
        functions::ranking_constant(writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (stage, factors) = (self.plan(), self.factors());
        let mut writer = Writer::new(&self.heading(), &format!("{pipeline}, stage {}", self.stage));
        self.constants(&mut writer);
        factor::define(&mut writer, self.shape);
        factor::probes(&mut writer, self.shape);
        writer.text(factor::FOUR);
        if !self.holds_pages() {
            writer.text(CACHE_ROW);
        }
        writer.text(ORDERED);
        if stage.rope != ScanRope::None {
            writer.text(ROTATE);
        }
        factors.functions(&mut writer);
        if self.rotation().turns_keys() {
            turned::places(&mut writer);
            turned::define(&mut writer, self.shape);
        }
        if let Some(extension) = extend::of_scan(stage.rope) {
            extend::functions(&mut writer, extension);
        }
        functions::chunk_list(&mut writer, self.stage);
        let rope = if stage.rope == ScanRope::None { "" } else { " const float2* __restrict__ rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{rope}\n   {parents} unsigned* scores, int score_stride) {{"
        ));
        let head = if self.together() { GROUP_HERE } else { HEADS_HERE };
        let (pages, last) = if self.holds_pages() { (WARP_PAGES, ", last = start + rows - 1") } else { ("", "") };
        let place = PLACE.replace("$HEAD\n", head.trim_start_matches('\n')).replace("$PAGES\n", pages);
        writer.more(&place.replace("$LAST", last));
        if self.rotation() == Rotation::Extended {
            writer.more(extend::BLOCK);
        }
        ranking_here(&mut writer, self.layer.ranking, true);
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        if factors.turns() == 1 {
            writer.text(&factors.load()).more("    sync_block();");
        }
        writer.text(&self.descend());
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(self.operands(|stage| Buffer::Lists { stage })),
            threads: (32 * self.tuning.warps) as u32,
            shared_bytes: (self.teams() * factors.bytes()) as u32,
        }
    }

    fn descend(&self) -> String {
        let factors = self.factors();
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let clamp = if self.stage == 0 {
            "min(left[set] + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)"
        } else {
            "left[set] + CHUNK"
        };
        let (token, left, right) = probe_texts(self.halving.probe, "[set]");
        let (sentence, best) = match self.halving.chunk_score {
            ChunkScore::RunningMax => (
                "The score is the best probe of all halvings, not the one the descent ends at.",
                "max(best[set], max(score[set][0], score[set][1]))",
            ),
            ChunkScore::Last => ("The score is that of the half taken last.", "max(score[set][0], score[set][1])"),
        };
        let row = match self.layer.ranking {
            Ranking::All => BLOCK_SCORES,
            Ranking::KvGroup | Ranking::Each => "score_row",
        };
        let (pages, first_page, page, read) =
            if self.holds_pages() { (PAGES, FIRST_PAGE, ROW_OF_PAGE, READ) } else { ("", "", ROW_OF_TABLE, "") };
        let (place, moved, turn, rest) = match self.rotation() {
            Rotation::Chunks => ("", String::new(), TURN_CHUNKS, MULTIPLY_REST),
            Rotation::Extended => {
                let position = extend::block_position("active ? token : 0");
                (
                    PROBE_POSITION,
                    format!("                    position[set][side] = {position};\n"),
                    TURN_EXTENDED,
                    MULTIPLY_REST,
                )
            }
            _ => ("", String::new(), "", ""),
        };
        let scaled = cached::scaled(self.shape);
        // What is turned is scaled before.
        let multiply = if scaled && !self.rotation().turns_keys() { MULTIPLY_SCALED } else { MULTIPLY };
        let multiply = multiply.replace("$REST\n", rest.trim_start_matches('\n'));
        let products = factors.place_rows(&PRODUCTS.replace("$MULTIPLY\n", multiply.trim_start_matches('\n')));
        let turn_pair = if scaled { TURN_SCALED_PAIR } else { TURN_PAIR };
        let (chunks, products) = if factors.turns() == 1 {
            (OWN_CHUNKS, products)
        } else {
            let turns = TURNS.replace("$LOAD\n", &indented(&factors.load(), 12));
            (BLOCK_CHUNKS, turns.replace("$PRODUCTS\n", &indented(&products, 4)))
        };
        let trim = |text: &str| text.trim_start_matches('\n').to_owned();
        DESCEND
            .replace("$CHUNKS\n", &trim(chunks))
            .replace("$PAGES\n", &trim(pages))
            .replace("$FIRST_PAGE\n", &trim(first_page))
            .replace("$FIRST", if self.holds_pages() { ", first_page[SETS]" } else { "" })
            .replace("$PAGE\n", &trim(page))
            .replace("$READ\n", &trim(read))
            .replace("$POSITION\n", &trim(place))
            .replace("$MOVED\n", &moved)
            .replace("$TURN\n", &trim(turn))
            .replace("$TURN_PAIR\n", &trim(turn_pair))
            .replace("$PRODUCTS\n", &trim(&products))
            .replace("$START(", start)
            .replace("$CLAMP", clamp)
            .replace("$TOKEN", token)
            .replace("$LEFT", &left)
            .replace("$RIGHT", &right)
            .replace("$SENTENCE", sentence)
            .replace("$BEST", best)
            .replace("$SCORE_ROW", row)
    }
}

impl Tune for ScanTiles {
    fn stem(&self, pipeline: &str) -> String {
        stem(&format!("scan{}", scoring_words(self.plan())), pipeline, self.shape, &self.layer, self.stage)
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::ScanPrefill(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        let mut choices = Vec::new();
        for warps in [4, 8] {
            for chunks in [8, 16, 24] {
                choices.extend([512, 1024, 2048].map(|blocks| ScanPrefill { warps, chunks, blocks }));
            }
        }
        // Of a list that one block of threads goes through at a time, it does not matter how many there may be.
        let listed = self.plan().keep_chunks.map_or(usize::MAX, |keep| keep * self.plan().split);
        let matters = |choice: &ScanPrefill| {
            let alone = self.clone().tuned(Tuning::ScanPrefill(*choice)).at_once() >= listed;
            !alone || choice.blocks == DEFAULT.blocks
        };
        choices.into_iter().filter(matters).map(Tuning::ScanPrefill).collect()
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::ScanPrefill(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

/// `text` with `spaces` more in front of each line.
fn indented(text: &str, spaces: usize) -> String {
    let line = |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("{:spaces$}{line}\n", "") };
    text.trim_matches('\n').lines().map(line).collect()
}

const PLACE: &str = r"
    SHARED_DYNAMIC(unsigned, factors);  // [TEAMS][COPIES][2][TILES][STEPS][32][4]: queries, and their rest
$PAGES
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int block = blockIdx.z, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
$HEAD
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW$LAST;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
";

const WARP_PAGES: &str = "    SHARED(unsigned, warp_pages, WARPS * CHUNKS * PAGES);\n";

const HEADS_HERE: &str = r"
    const int first_head = blockIdx.y * TEAMS, kv_head = first_head / GROUP, head = first_head + warp % TEAMS;
";

const GROUP_HERE: &str = r"
    const int kv_head = blockIdx.y, first_head = kv_head * GROUP;
";

const DESCEND: &str = r"
    const int across = lane % 4, down = lane / 4;
    const unsigned* const own_factors = factors + warp % TEAMS * COPIES * 2 * PART + lane * 4;
$CHUNKS
$PAGES
        // A lane loads parts of the probes of chunk `down` of each set.
        int left[SETS], right[SETS]$FIRST;
        float best[SETS];
        for (int set = 0; set < SETS; ++set) {
            const int chunk = base + set * 8 + down;
            left[set] = $START(min(chunk, chunks - 1));
            right[set] = chunk < chunks ? $CLAMP : left[set];
$FIRST_PAGE
            best[set] = LOWEST;
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it. What is loaded for an inactive chunk is ignored.
            Probe probe[SETS][2];
$POSITION
#pragma unroll
            for (int set = 0; set < SETS; ++set) {
                const bool active = left[set] < right[set] && left[set] <= limit;
                const int middle = (left[set] + right[set]) / 2;
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int token = side == 0 ? $LEFT : $RIGHT;
$PAGE
$MOVED
                    probe[set][side] = load_probe(keys, row, across);
                }
            }
$TURN
            float score[SETS][2];
            for (int set = 0; set < SETS; ++set) score[set][0] = score[set][1] = LOWEST;
$PRODUCTS
            for (int set = 0; set < SETS; ++set)
                for (int side = 0; side < 2; ++side) {
                    score[set][side] = max(score[set][side], shuffle_xor(score[set][side], 8));
                    score[set][side] = max(score[set][side], shuffle_xor(score[set][side], 16));
                    // Column `down` is in the lanes across it.
                    score[set][side] = shuffle(score[set][side], down % 2 * 4 + down / 2);
                }
            // A tie goes right. $SENTENCE
            for (int set = 0; set < SETS; ++set) {
                if (!(left[set] < right[set] && left[set] <= limit)) continue;
                const int middle = (left[set] + right[set]) / 2;
                if (score[set][0] > score[set][1]) {
                    right[set] = middle;
                } else {
                    left[set] = middle;
                }
                best[set] = $BEST;
            }
        }
        for (int set = 0; set < SETS; ++set)
            if (across == 0 && best[set] > LOWEST)
                atomic_max(&scores[$SCORE_ROW + base + set * 8 + down], ordered(max(best[set], NEVER)));
$READ
    }
}
";

const OWN_CHUNKS: &str = r"
    const int first_chunk = (blockIdx.x * (WARPS / TEAMS) + warp / TEAMS) * CHUNKS;
    for (int base = first_chunk; base < chunks; base += gridDim.x * (WARPS / TEAMS) * CHUNKS) {
        // The list is ascending: where a warp's first chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
";

const BLOCK_CHUNKS: &str = r"
    // Warps go on together: they share what is in shared memory.
    for (int group = blockIdx.x * WARPS * CHUNKS; group < chunks; group += gridDim.x * WARPS * CHUNKS) {
        // The list is ascending: where a group's first chunk lies beyond the limit, so does every later one.
        if ($START(group) > limit) break;
        const int base = group + warp * CHUNKS;
";

const PAGES: &str = r"
        unsigned* const pages = warp_pages + warp * CHUNKS * PAGES;
        for (int item = lane; item < CHUNKS * PAGES; item += 32) {
            const int chunk = min(base + item / PAGES, chunks - 1);
            pages[item] = page_table[min($START(chunk) / PAGE + item % PAGES, last / PAGE)];
        }
        sync_warp();
";

const FIRST_PAGE: &str = r"
            first_page[set] = left[set] / PAGE;
";

const ROW_OF_PAGE: &str = r"
                    const unsigned page = pages[(set * 8 + down) * PAGES + (active ? token / PAGE - first_page[set] : 0)];
                    const unsigned long long row = (page * KV_HEADS + kv_head) * PAGE + (active ? token % PAGE : 0);
";

const ROW_OF_TABLE: &str = r"
                    const unsigned long long row = cache_row(page_table, active ? token : 0, kv_head);
";

const READ: &str = r"
        sync_warp();  // the pages have been read
";

const TURN_CHUNKS: &str = r"
            // A key's position is the index of its chunk in the list.
            unsigned rest[SETS][2][2 * STEPS];
            for (int set = 0; set < SETS; ++set) {
                const float2* const angles = &rope_table[min(base + set * 8 + down, chunks) * HALF];
                for (int pair = 0; pair < STEPS; ++pair) {
                    const Angles two = *reinterpret_cast<const Angles*>(&angles[first_element(pair, across)]);
                    for (int side = 0; side < 2; ++side) {
                        unsigned(&key)[2 * STEPS] = probe[set][side].at, (&over)[2 * STEPS] = rest[set][side];
$TURN_PAIR
                    }
                }
            }
";

const PROBE_POSITION: &str = r"
            int position[SETS][2];
";

const TURN_EXTENDED: &str = r"
            // A key's position is where it is brought back to.
            unsigned rest[SETS][2][2 * STEPS];
            for (int set = 0; set < SETS; ++set)
                for (int side = 0; side < 2; ++side) {
                    unsigned(&key)[2 * STEPS] = probe[set][side].at, (&over)[2 * STEPS] = rest[set][side];
                    const float2* const angles = &rope_table[position[set][side] * HALF];
                    for (int pair = 0; pair < STEPS; ++pair) {
                        const Angles two = *reinterpret_cast<const Angles*>(&angles[first_element(pair, across)]);
$TURN_PAIR
                    }
                }
";

const TURN_PAIR: &str = r"
                        turn_pairs(key[pair], key[pair + STEPS], over[pair], over[pair + STEPS], two);
";

const TURN_SCALED_PAIR: &str = r"
                        const float low_scale = shuffle(probe[set][side].scale, down * 4 + scale_of(pair));
                        const float high_scale = shuffle(probe[set][side].scale, down * 4 + scale_of(pair + STEPS));
                        turn_pairs(key[pair], key[pair + STEPS], over[pair], over[pair + STEPS], two, low_scale, high_scale);
";

const TURNS: &str = r"
            for (int turn = 0; turn < TURNS; ++turn) {
                sync_block();  // the rows before have been multiplied
$LOAD
                sync_block();
$PRODUCTS
            }
";

const PRODUCTS: &str = r"
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int copy = 0; copy < COPIES; ++copy) {
                    float product[SIDES][SETS][4] = {};
$MULTIPLY
                    // A lane has the columns 2 * across and 2 * across + 1 of two rows, and goes on with one of them.
                    const int row = $ROW;
                    const bool one = $ONE, other = $OTHER;
                    for (int side = 0; side < SIDES; ++side)
                        for (int set = 0; set < SETS; ++set) {
                            const float(&of)[4] = product[side][set];
                            const float even = max(one ? of[0] : LOWEST, other ? of[2] : LOWEST);
                            const float odd = max(one ? of[1] : LOWEST, other ? of[3] : LOWEST);
                            const float mine = max(down % 2 == 0 ? even : odd, shuffle_xor(down % 2 == 0 ? odd : even, 4));
                            score[set][copy + side] = max(score[set][copy + side], mine);
                        }
                }
";

const MULTIPLY: &str = r"
                    for (int part = 0; part < 2; ++part)
                        for (int at = 0; at < STEPS; ++at) {
                            const Four factor = *reinterpret_cast<const Four*>(
                                &own_factors[(copy * 2 + part) * PART + (tile * STEPS + at) * STEP]);
                            for (int side = 0; side < SIDES; ++side)
                                for (int set = 0; set < SETS; ++set) {
                                    const unsigned* const key = &probe[set][copy + side].at[2 * at];
                                    mma_16x8x16<Factor>(product[side][set], factor.at, {key[0], key[1]});
$REST
                                }
                        }
";

const MULTIPLY_REST: &str = r"
                                    const unsigned* const over = &rest[set][copy + side][2 * at];
                                    if (part == 0) mma_16x8x16<Factor>(product[side][set], factor.at, {over[0], over[1]});
";

const MULTIPLY_SCALED: &str = r"
                    for (int scale = 0; scale < SCALES; ++scale) {
                        float sum[SIDES][SETS][4] = {};
                        for (int at = scale * (STEPS / SCALES); at < (scale + 1) * (STEPS / SCALES); ++at)
                            for (int part = 0; part < 2; ++part) {
                                const Four factor = *reinterpret_cast<const Four*>(
                                    &own_factors[(copy * 2 + part) * PART + (tile * STEPS + at) * STEP]);
                                for (int side = 0; side < SIDES; ++side)
                                    for (int set = 0; set < SETS; ++set) {
                                        const unsigned* const key = &probe[set][copy + side].at[2 * at];
                                        mma_16x8x16<Factor>(sum[side][set], factor.at, {key[0], key[1]});
                                    }
                            }
                        // The lanes of a column have its scales.
                        for (int side = 0; side < SIDES; ++side)
                            for (int set = 0; set < SETS; ++set)
                                for (int e = 0; e < 2; ++e) {
                                    const float its = shuffle(probe[set][copy + side].scale, across * 8 + e * 4 + scale);
                                    for (int r = 0; r < 4; r += 2) product[side][set][r + e] += sum[side][set][r + e] * its;
                                }
                    }
";
