//! Prefill on tensor cores: averaged queries are the rows of a product, the probes of eight chunks its columns.
//!
//! A warp takes 8 to 32 chunks of one head and keeps its descents in registers. Lanes load their parts of the probes straight
//! into the registers that the product takes them from; queries lie in shared memory as left factors. Warps of the heads of
//! a group stand side by side, so that the probes they share come from the nearest cache. Where the heads of a group
//! descend together, a warp has the rows of all of them, and loads their probes once. The texts are in
//! [`super::descents`].

use super::cached;
use super::descents;
use super::extend;
use super::factor;
use super::factors::{Copies, Factors};
use super::functions::{self, CACHE_ROW, ORDERED, ROTATE, Shape};
use super::rows::{self, Heads, Rotation, Rows};
use super::scan::{chunks_here, heads_of, probe_texts, ranking_here};
use super::scan_prefill::{self, Products};
use super::scoring::{self, BLOCK_SCORES, Output, Source, scan_constants, scoring_words, stem};
use super::tune::Tune;
use super::turned;
use super::writer::{Writer, indented};
use super::{Buffer, Family, Kernel};
use crate::tuning::{ScanPrefill, Tuning};
use crate::{ChunkScore, Descent, Halving, PrunedLayer, QueryReduction, Ranking, ScanRope, StagePlan};

/// Two products beside each other take the same queries. More blocks of threads would load the same queries more often.
const DEFAULT: ScanPrefill = ScanPrefill { warps: 8, chunks: 16, blocks: 1024 };
/// Four products beside each other, where the probes of a side come at a time.
const IN_TURN: ScanPrefill = ScanPrefill { chunks: 32, ..DEFAULT };
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
        let tuning = match (turned, scan.takes_sides_in_turn()) {
            (true, _) => TURNED,
            (false, true) => IN_TURN,
            (false, false) => DEFAULT,
        };
        let scan = Self { tuning, ..scan };
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
        scan_prefill::grid(self.tuning, blocks, heads, chunks, self.at_once())
    }

    /// What it multiplies: rows and two probes a halving.
    pub(super) fn products(&self) -> Products {
        let heads = if self.together() { self.shape.group() } else { 1 };
        Products::new(&self.factors(), heads, 2 * self.halvings())
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
        let both = Factors { shape: self.shape, rows, copies, apart: false };
        Factors { apart: both.turns() > 1 && self.takes_sides_in_turn(), ..both }
    }

    /// Whether the last halving finds one token in both halves, which the one before has probed.
    fn ends_at_one(&self) -> bool {
        self.plan().chunk.is_power_of_two() && self.plan().halvings > 1
    }

    /// Halvings of a descent. Where both probes of a chunk stand alike, one token's score cannot change what two had.
    fn halvings(&self) -> usize {
        self.plan().halvings - usize::from(self.ends_at_one() && self.factors().copies() == 1)
    }

    /// Whether left probes are multiplied before right ones are loaded: they take other copies of the queries, and in the same
    /// registers twice as many chunks share what is loaded of a copy. Sums of scaled numbers need the registers themselves.
    fn takes_sides_in_turn(&self) -> bool {
        self.rotation() == Rotation::QueriesTwice && !cached::scaled(self.shape)
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
            self.halvings(),
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
            .constant("HALVINGS", self.halvings(), "two probes each")
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
        // As many warps as registers of a multiprocessor hold where both sides are loaded at a time.
        let entry = if self.takes_sides_in_turn() { "KERNEL(THREADS, 16 / WARPS)" } else { "KERNEL(THREADS)" };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        writer.text(&format!(
            "{entry} {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{rope}\n   {parents} unsigned* scores, int score_stride) {{"
        ));
        let head = if self.together() { GROUP_HERE } else { HEADS_HERE };
        let (pages, last) = if self.holds_pages() { (WARP_PAGES, ", last = start + rows - 1") } else { ("", "") };
        let place = PLACE.replace("$HEAD\n", head.trim_start_matches('\n')).replace("$PAGES\n", pages);
        let of_copy = if factors.apart { "" } else { "[TEAMS][COPIES]" };
        writer.more(&place.replace("$LAST", last).replace("$SHAPE", of_copy));
        if self.rotation() == Rotation::Extended {
            writer.more(extend::BLOCK);
        }
        ranking_here(&mut writer, self.layer.ranking, true);
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        if !factors.take_turns() {
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
        self.descend_to_probes()
            .replace("$START(", start)
            .replace("$CLAMP", clamp)
            .replace("$TOKEN", token)
            .replace("$LEFT", &left)
            .replace("$RIGHT", &right)
            .replace("$SENTENCE", sentence)
            .replace("$BEST", best)
            .replace("$SCORE_ROW", row)
    }

    /// The descents, with what a stage's chunks and halves are in it left open.
    fn descend_to_probes(&self) -> String {
        let factors = self.factors();
        let trim = |text: &str| text.trim_start_matches('\n').to_owned();
        let (pages, at, pages_at, page, read) = if self.holds_pages() {
            (descents::PAGES, ", pages_at[SETS]", descents::PAGES_AT, descents::ROW_OF_PAGE, descents::READ)
        } else {
            ("", "", "", descents::ROW_OF_TABLE, "")
        };
        let (place, moved, turn, rest) = match self.rotation() {
            Rotation::Chunks => ("", String::new(), descents::TURN_CHUNKS, descents::MULTIPLY_REST),
            Rotation::Extended => {
                let position = extend::block_position("active ? token : 0");
                (
                    descents::PROBE_POSITION,
                    format!("                    position[set][side] = {position};\n"),
                    descents::TURN_EXTENDED,
                    descents::MULTIPLY_REST,
                )
            }
            _ => ("", String::new(), "", ""),
        };
        let scaled = cached::scaled(self.shape);
        // What is turned is scaled before.
        let multiply =
            if scaled && !self.rotation().turns_keys() { descents::MULTIPLY_SCALED } else { descents::MULTIPLY };
        let product = descents::PRODUCT
            .replace("$MULTIPLY\n", &trim(multiply))
            .replace("$REST\n", &trim(rest))
            .replace("$PART", if factors.apart { "part" } else { "(copy * 2 + part)" })
            .replace("$SIDE", if self.takes_sides_in_turn() { "side" } else { "copy + side" });
        let load = indented(&factors.load(), 12);
        let in_turns = |products: &str| descents::TURNS.replace("$LOAD\n", &load).replace("$PRODUCTS\n", products);
        let best_row = |sides: &str, side| descents::BEST_ROW.replace("$SIDES\n", &trim(sides)).replace("$SIDE", side);
        let (probes, products, best_row) = if self.takes_sides_in_turn() {
            let same = if self.ends_at_one() { descents::SAME } else { "" };
            let one = descents::ONE_SIDE.replace("$SAME\n", &trim(same));
            let tiles = factors.place_rows(&descents::TILES.replace("$PRODUCT\n", &trim(&product)));
            let tiles = if factors.take_turns() { indented(&in_turns(&trim(&tiles)), 4) } else { tiles };
            let products = descents::PRODUCTS_OF_SIDES
                .replace("$PROBES\n", &trim(&one))
                .replace("$TILES\n", &trim(&tiles))
                .replace("$BEST_ROW\n", &trim(&best_row(descents::SIDE_AT_HAND, "copy")));
            (String::new(), products, String::new())
        } else {
            let both = descents::BOTH_SIDES
                .replace("$POSITION\n", &trim(place))
                .replace("$MOVED\n", &moved)
                .replace("$TURN\n", &trim(turn));
            let products = factors.place_rows(&descents::PRODUCTS.replace("$PRODUCT\n", &trim(&product)));
            let products = if factors.take_turns() { in_turns(&indented(&products, 4)) } else { products };
            (both, products, best_row(descents::EVERY_SIDE, "side"))
        };
        let chunks = if factors.take_turns() { descents::BLOCK_CHUNKS } else { descents::OWN_CHUNKS };
        let turn_pair = if scaled { descents::TURN_SCALED_PAIR } else { descents::TURN_PAIR };
        descents::DESCEND
            .replace("$CHUNKS\n", &trim(chunks))
            .replace("$PAGES\n", &trim(pages))
            .replace("$PAGES_AT\n", &trim(pages_at))
            .replace("$AT", at)
            .replace("$READ\n", &trim(read))
            .replace("$PROBES\n", &trim(&probes))
            .replace("$BEST_ROW\n", &trim(&best_row))
            .replace("$PRODUCTS\n", &trim(&products))
            .replace("$PAGE\n", &trim(page))
            .replace("$TURN_PAIR\n", &trim(turn_pair))
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
        let at_once = |tuning| Self { tuning, ..self.clone() }.at_once();
        let chunks = if self.takes_sides_in_turn() { [16, 24, 32] } else { [8, 16, 24] };
        scan_prefill::space(self.plan(), chunks, DEFAULT, at_once)
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::ScanPrefill(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

const PLACE: &str = r"
    SHARED_DYNAMIC(unsigned, factors);  // $SHAPE[2][TILES][STEPS][32][4]: queries, and their rest
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
