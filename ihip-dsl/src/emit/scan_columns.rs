//! Decoding on tensor cores: probes are the columns of a small product, the heads of a group its rows.
//!
//! A warp takes as many chunks as make eight probes: of every head a left and a right one, or of the group where its
//! heads descend together. Every lane loads its part of one probe straight into the registers that the product takes it
//! from, so that probes which heads share are loaded once, and no sum has to be passed from lane to lane. Queries are
//! split into what the factors' type holds of them and the rest: products are exact to about 2⁻¹⁷ of the query.

use super::cached;
use super::factor;
use super::functions::{self, CACHE_ROW, ORDERED, ROTATE, Shape};
use super::probes::Kept;
use super::row::{Row, scan_space};
use super::scan::probe_texts;
use super::scoring::{self, Output, Source, row_constants, scoring_words, stem};
use super::tune::Tune;
use super::writer::Writer;
use super::{Buffer, Kernel};
use crate::tuning::{ScanDecode, Tuning};
use crate::{ChunkScore, Descent, Halving, PrunedLayer, Ranking, ScanRope, StagePlan};

/// As many warps over all key-value heads as a large chip runs at a time.
const DEFAULT: ScanDecode = ScanDecode { threads: 128, warps: 3168 };
/// Rows of a product that hold queries; as many hold what rounding took from them.
const ROWS: usize = 8;
/// Columns of a product.
const COLUMNS: usize = 8;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanColumns {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
    halving: Halving,
    tuning: ScanDecode,
    kept: Kept,
}

impl ScanColumns {
    /// The kernel for a stage, where one product has room for the heads of a group.
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize, halving: Halving) -> Option<Self> {
        let scan =
            Self { shape, layer: row_constants(layer, stage), stage, halving, tuning: DEFAULT, kept: Kept::default() };
        let rope =
            matches!(scan.plan().rope, ScanRope::Relative | ScanRope::Infllm | ScanRope::ChunkIndexed | ScanRope::None);
        let fits = factor::fits(shape) && scan.copies() * shape.group() <= ROWS && scan.probes() <= COLUMNS;
        (rope && fits && layer.ranking != Ranking::Each && !scoring::soft(scan.plan())).then_some(scan)
    }

    /// The same where the GPU keeps `kept`, unless a chunk is read as a whole.
    pub(super) fn keeping(self, kept: Kept) -> Self {
        if self.whole() { self } else { Self { kept, ..self } }
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        self.row().grid()
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        let operands = scoring::operands(self.shape, &self.layer, self.stage, Source::Keys, Output::Scores, parents);
        self.kept.operand(self.row().named(operands))
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    /// Whether heads of a group take the same halves.
    fn together(&self) -> bool {
        self.halving.descent == Descent::KvGroup
    }

    /// Copies of the queries: one for left probes and one for right ones where their positions differ.
    fn copies(&self) -> usize {
        if self.plan().rope == ScanRope::Relative { 2 } else { 1 }
    }

    /// Probes of one chunk.
    fn probes(&self) -> usize {
        if self.together() { 2 } else { 2 * self.shape.group() }
    }

    /// Whether queries are turned anew for every chunk.
    fn indexed(&self) -> bool {
        self.plan().rope == ScanRope::ChunkIndexed
    }

    /// Whether all keys of a chunk are columns of one product: then a chunk is loaded once, not once a halving.
    fn whole(&self) -> bool {
        self.plan().chunk <= COLUMNS
    }

    /// Chunks of a warp.
    fn chunks(&self) -> usize {
        if self.indexed() || self.whole() { 1 } else { COLUMNS / self.probes() }
    }

    /// Whether the lanes that share a chunk have room for all pages that it may lie in.
    fn holds_pages(&self) -> bool {
        let pages = (self.plan().chunk - 1) / self.shape.geometry.page as usize + 2;
        pages <= 32 / self.chunks()
    }

    fn row(&self) -> Row<'_> {
        Row {
            shape: self.shape,
            layer: &self.layer,
            stage: self.stage,
            together: self.together(),
            twice: self.copies() == 2,
            tuning: self.tuning,
        }
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (stage, row) = (self.plan(), self.row());
        let whose = if self.together() { "of the group" } else { "of every head of a group" };
        let heading = format!(
            "Decoding, stage {}: scores chunks of {} tokens for one query by {} halvings.\n\
             Warps stride over the chunks of a key-value head, {} at a time. The probes {whose} are the columns of a product.",
            self.stage,
            stage.chunk,
            stage.halvings,
            self.chunks()
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, stage {}", self.stage));
        self.shape.constants(&mut writer);
        functions::chunk_list_constants(&mut writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("HALVINGS", stage.halvings, "two probes each")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query")
            .float("NEVER", -32000.0, "score of a chunk without a probe")
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", self.tuning.threads, "threads of a block")
            .constant("ROWS", self.copies() * self.shape.group(), "rows of a product that hold queries")
            .constant("RIGHT_ROW", (self.copies() - 1) * self.shape.group(), "the first of those for right probes")
            .constant("PROBES", self.probes(), "columns of a product that are probes of one chunk")
            .constant("CHUNKS", self.chunks(), "chunks that a warp descends at a time")
            .constant("STEPS", self.shape.head_dim() / 16, "products along a row");
        factor::define(&mut writer, self.shape);
        factor::probes(&mut writer, self.shape);
        if !self.holds_pages() {
            writer.text(CACHE_ROW);
        }
        writer.text(ORDERED);
        if stage.rope == ScanRope::Relative || stage.rope == ScanRope::Infllm {
            writer.text(ROTATE);
        }
        functions::chunk_list_of_row(&mut writer, self.stage);
        self.kept.functions(&mut writer);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{}{}\n   {} {}) {{",
            self.kept.parameter(),
            row.rope_table(),
            row.parents(),
            row.scores()
        ));
        row.load(&mut writer);
        writer.text(&self.body());
        row.kernel(name, writer, self.operands(|stage| Buffer::CachedLists { stage }))
    }

    /// Everything after the queries are in shared memory.
    fn body(&self) -> String {
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let clamp =
            if self.stage == 0 { "min(start + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)" } else { "start + CHUNK" };
        let factor = |load: &str, indent: &str| {
            let text = FACTOR.replace("$LOAD\n", load.trim_start_matches('\n'));
            text.trim_start_matches('\n').lines().map(|line| format!("{indent}{line}\n")).collect::<String>()
        };
        let (once, each) = if self.indexed() {
            (String::new(), factor(LOAD_TURNED, "        "))
        } else {
            (factor(LOAD, "    "), String::new())
        };
        let (token, left, right) = probe_texts(self.halving.probe, "");
        let (sentence, best) = match self.halving.chunk_score {
            ChunkScore::RunningMax => (
                "The score is the best probe of all halvings, not the one the descent ends at.",
                "max(best, max(left_score, right_score))",
            ),
            ChunkScore::Last => ("The score is that of the half taken last.", "max(left_score, right_score)"),
        };
        let (pages, page, row) = if self.holds_pages() {
            (PAGES, PAGE_OF_LANE, "(page * KV_HEADS + kv_head) * PAGE + (active ? token % PAGE : 0)")
        } else {
            ("", "", "cache_row(page_table, active ? token : 0, kv_head)")
        };
        let row = ROW.replace("$PAGE\n", page.trim_start_matches('\n')).replace("$PROBE", &self.kept.row("token", row));
        let row = self.kept.test("            ") + row.trim_start_matches('\n');
        let (head, join) = if self.together() { ("", "") } else { (HEAD, JOIN_HEADS) };
        let (body, scores) = match (self.whole(), self.together()) {
            (false, false) => (HALVE, HEAD_SCORES),
            (false, true) => (HALVE, GROUP_SCORES),
            (true, false) => (HALVE_WHOLE, HEAD_PICKS),
            (true, true) => (HALVE_WHOLE, GROUP_PICKS),
        };
        let (reduce, picks) = scores.split_once("$THEN\n").unwrap_or(("", scores));
        // Where the whole chunk is loaded at once, that is outside of the loop over halvings.
        let placed = |text: &str| {
            let text = text.trim_start_matches('\n');
            if self.whole() {
                text.strip_prefix("    ").unwrap_or(text).replace("\n    ", "\n")
            } else {
                text.to_owned()
            }
        };
        let score_row = if self.layer.ranking == Ranking::All { "" } else { "kv_head * score_stride + " };
        let product = if cached::scaled(self.shape) { SCALED_PRODUCT } else { PRODUCT };
        BODY.replace("$HALVE\n", body.trim_start_matches('\n'))
            .replace("$PRODUCT\n", &placed(product))
            .replace("$ONCE\n", &once)
            .replace("$EACH\n", &each)
            .replace("$HEAD\n", head.trim_start_matches('\n'))
            .replace("$PAGES\n", pages.trim_start_matches('\n'))
            .replace("$ROW\n", &placed(&row))
            .replace("$REDUCE\n", reduce.trim_start_matches('\n'))
            .replace("$SCORES\n", picks.trim_start_matches('\n'))
            .replace("$JOIN\n", join.trim_start_matches('\n'))
            .replace("$SCORE_ROW", score_row)
            .replace("$START(", start)
            .replace("$CLAMP", clamp)
            .replace("$TOKEN", token)
            .replace("$LEFT", &left)
            .replace("$RIGHT", &right)
            .replace("$SENTENCE", sentence)
            .replace("$BEST", best)
            .replace("$KEYS", self.kept.keys())
    }
}

impl Tune for ScanColumns {
    fn stem(&self, pipeline: &str) -> String {
        let family = format!("scan_decode{}", scoring_words(self.plan()));
        stem(&family, pipeline, self.shape, &self.layer, self.stage)
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::ScanDecode(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        scan_space([1584, 2112, 3168, 4224])
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::ScanDecode(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

const FACTOR: &str = r"
// The left factor of the products. Rows from 8 on hold what rounding to the factors' type took from the first ones.
// Elements come in the order in which lanes load them from a key: a product does not mind.
unsigned factor[STEPS][4];
for (int load = 0; load < LOADS; ++load)
    for (int pair = 0; pair < EACH / 2; ++pair) {
        float whole[2], rest[2];
        for (int e = 0; e < 2; ++e) {
            const int element = (load * 4 + across) * EACH + pair * 2 + e;
$LOAD
            whole[e] = to_float(from_float<Factor>(x));
            rest[e] = x - whole[e];
        }
        unsigned(&part)[4] = factor[load * (EACH / 4) + pair / 2];
        part[pair % 2 * 2] = pack<Factor>(whole[0], whole[1]);
        part[pair % 2 * 2 + 1] = pack<Factor>(rest[0], rest[1]);
    }
";

const LOAD: &str = r"
            const float x = down < ROWS ? queries[down * HEAD_DIM + element] : 0.0f;
";

const LOAD_TURNED: &str = r"
            // A key's position is the index of its chunk. Turning the query back by it once serves all of its probes.
            const int distance = max(0, min(position, chunks + SCAN_WINDOW) - chunk), row = min(down, ROWS - 1);
            const float2 angle = rope_table[distance * HALF + element % HALF];
            const float here = queries[row * HEAD_DIM + element];
            const float there = queries[row * HEAD_DIM + (element + HALF) % HEAD_DIM];
            const float x = here * angle.x + (element < HALF ? -there : there) * angle.y;
";

const BODY: &str = r"
    const int lane = thread % 32, across = lane % 4, down = lane / 4;
$ONCE
    // A lane loads its part of the probe in column `down`: left probes are in even columns, right ones in odd ones.
    const int slot = min(down / PROBES, CHUNKS - 1);
$HEAD
    const int warps = gridDim.x * (THREADS / 32), warp = blockIdx.x * (THREADS / 32) + thread / 32;
    // The loop is the same for all lanes of a warp, because they compute products together.
    for (int base = warp * CHUNKS; base < chunks; base += warps * CHUNKS) {
        // The list is ascending: where one chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
        const bool mine = down < PROBES * CHUNKS && base + slot < chunks;
        const int chunk = min(base + slot, chunks - 1), start = $START(chunk);
$PAGES
$EACH
        int left = start, right = mine ? $CLAMP : start;
        float best = LOWEST;
$HALVE
            // A tie goes right. $SENTENCE
            if (active) {
                if (left_score > right_score) {
                    right = middle;
                } else {
                    left = middle;
                }
                best = $BEST;
            }
        }
$JOIN
        if (across == 0 && down % PROBES == 0 && best > LOWEST)
            atomic_max(&scores[$SCORE_ROWchunk], ordered(max(best, NEVER)));
    }
}
";

const HALVE: &str = r"
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it. An inactive column is loaded and ignored.
            const bool active = left < right && left <= limit;
            const int middle = (left + right) / 2;
            const int token = down % 2 == 0 ? $LEFT : $RIGHT;
$ROW
$PRODUCT
$REDUCE
$SCORES
";

const HALVE_WHOLE: &str = r"
        // The keys of the chunk are the columns of one product: halving only picks among them.
        const bool active = start <= limit;
        const int token = start + min(down, CHUNK - 1);
$ROW
$PRODUCT
$REDUCE
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it.
            const bool active = left < right && left <= limit;
            const int middle = (left + right) / 2;
            const int left_key = $LEFT - start, right_key = $RIGHT - start;
$SCORES
";

const PRODUCT: &str = r"
            const Probe probe = load_probe($KEYS, row, across);
            float product[2][4] = {};
            for (int i = 0; i < STEPS; ++i)
                mma_16x8x16<Factor>(product[i % 2], factor[i], {probe.at[2 * i], probe.at[2 * i + 1]});
            // Of row `down`: columns 2 * across and 2 * across + 1.
            const float even = product[0][0] + product[1][0] + (product[0][2] + product[1][2]);
            const float odd = product[0][1] + product[1][1] + (product[0][3] + product[1][3]);
";

const SCALED_PRODUCT: &str = r"
            const Probe probe = load_probe($KEYS, row, across);
            float product[SCALES][4] = {};
            for (int i = 0; i < STEPS; ++i)
                mma_16x8x16<Factor>(product[i / (STEPS / SCALES)], factor[i], {probe.at[2 * i], probe.at[2 * i + 1]});
            // Of row `down`: columns 2 * across and 2 * across + 1, whose scales their lanes have.
            float even = 0.0f, odd = 0.0f;
            for (int scale = 0; scale < SCALES; ++scale) {
                even += (product[scale][0] + product[scale][2]) * shuffle(probe.scale, across * 8 + scale);
                odd += (product[scale][1] + product[scale][3]) * shuffle(probe.scale, across * 8 + 4 + scale);
            }
";

const HEAD: &str = r"
    const int head = down % PROBES / 2;
";

const PAGES: &str = r"
        // The lanes of a chunk hold the pages that it lies in.
        const int first_page = start / PAGE;
        const unsigned pages = page_table[min(first_page + lane % (32 / CHUNKS), position / PAGE)];
";

const PAGE_OF_LANE: &str = r"
            const unsigned page = shuffle(pages, slot * (32 / CHUNKS) + (active ? token / PAGE - first_page : 0));
";

const ROW: &str = r"
$PAGE
            const unsigned long long row = $PROBE;
";

const HEAD_SCORES: &str = r"
            const float left_score = shuffle(even, head * 4 + down / 2);
            const float right_score = shuffle(odd, (RIGHT_ROW + head) * 4 + down / 2);
";

const GROUP_SCORES: &str = r"
            // The head that wants a half most decides for the group.
            float left_most = down < GROUP ? even : LOWEST;
            float right_most = down >= RIGHT_ROW && down < RIGHT_ROW + GROUP ? odd : LOWEST;
            for (int mask = 4; mask < 32; mask *= 2) {
                left_most = max(left_most, shuffle_xor(left_most, mask));
                right_most = max(right_most, shuffle_xor(right_most, mask));
            }
            const float left_score = shuffle(left_most, down / 2), right_score = shuffle(right_most, down / 2);
";

const HEAD_PICKS: &str = r"
            const int left_lane = head * 4 + left_key / 2, right_lane = (RIGHT_ROW + head) * 4 + right_key / 2;
            const float left_even = shuffle(even, left_lane), left_odd = shuffle(odd, left_lane);
            const float right_even = shuffle(even, right_lane), right_odd = shuffle(odd, right_lane);
            const float left_score = left_key % 2 == 0 ? left_even : left_odd;
            const float right_score = right_key % 2 == 0 ? right_even : right_odd;
";

const GROUP_PICKS: &str = r"
        // The head that wants a half most decides for the group.
        const bool is_left = down < GROUP, is_right = down >= RIGHT_ROW && down < RIGHT_ROW + GROUP;
        float most[2][2] = {{is_left ? even : LOWEST, is_left ? odd : LOWEST}, {is_right ? even : LOWEST, is_right ? odd : LOWEST}};
        for (int mask = 4; mask < 32; mask *= 2)
            for (int side = 0; side < 2; ++side)
                for (int e = 0; e < 2; ++e) most[side][e] = max(most[side][e], shuffle_xor(most[side][e], mask));
$THEN
            const float left_even = shuffle(most[0][0], left_key / 2), left_odd = shuffle(most[0][1], left_key / 2);
            const float right_even = shuffle(most[1][0], right_key / 2), right_odd = shuffle(most[1][1], right_key / 2);
            const float left_score = left_key % 2 == 0 ? left_even : left_odd;
            const float right_score = right_key % 2 == 0 ? right_even : right_odd;
";

const JOIN_HEADS: &str = r"
        for (int mask = 8; mask < 4 * PROBES; mask *= 2) best = max(best, shuffle_xor(best, mask));
";
