//! Decoding: one query descends every chunk it may see, spread over the whole chip.
//!
//! A few lanes hold one query head and read one probe together, so that every load is 16 bytes a lane and every chunk
//! costs two loads a halving. Heads of a group descend the same chunk side by side: their first probes are the same.
//! Where they take the same halves, all probes are, and each is loaded once for the group.

use super::cached;
use super::functions::{self, ORDERED, Shape};
use super::probes::Kept;
use super::row::{DEFAULT, Row, WARPS, scan_space};
use super::scan::probe_texts;
use super::scoring::{self, Output, Source, row_constants, scoring_words, stem};
use super::tune::Tune;
use super::writer::Writer;
use super::{Buffer, Kernel};
use crate::tuning::{ScanDecode, Tuning};
use crate::{ChunkScore, Descent, Halving, PrunedLayer, Ranking, ScanRope, StagePlan};

/// Chunks that a team of lanes descends at a time: each adds two loads in flight.
const DESCENTS: usize = 2;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanRow {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
    halving: Halving,
    tuning: ScanDecode,
    kept: Kept,
}

impl ScanRow {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize, halving: Halving) -> Self {
        Self { shape, layer: row_constants(layer, stage), stage, halving, tuning: DEFAULT, kept: Kept::default() }
    }

    /// The same where the GPU keeps `kept`.
    pub(super) fn keeping(self, kept: Kept) -> Self {
        Self { kept, ..self }
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        self.row().grid()
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        let output = if self.soft() { Output::RowScores } else { Output::Scores };
        let operands = scoring::operands(self.shape, &self.layer, self.stage, Source::Keys, output, parents);
        self.kept.operand(self.row().named(operands))
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    fn soft(&self) -> bool {
        scoring::soft(self.plan())
    }

    /// Whether heads of a group take the same halves.
    fn together(&self) -> bool {
        self.halving.descent == Descent::KvGroup
    }

    fn row(&self) -> Row<'_> {
        Row {
            shape: self.shape,
            layer: &self.layer,
            stage: self.stage,
            together: self.together(),
            twice: self.plan().rope == ScanRope::Relative,
            tuning: self.tuning,
        }
    }

    fn heading(&self) -> String {
        let (stage, row) = (self.plan(), self.row());
        let team = if self.together() {
            "the heads of a group and one chunk at a time".to_owned()
        } else {
            format!("one head and {DESCENTS} chunks at a time")
        };
        format!(
            "Decoding, stage {}: scores chunks of {} tokens for one query by {} halvings.\n\
             {} lanes take {team}; blocks of threads stride over the chunks of a {} head.",
            self.stage,
            stage.chunk,
            stage.halvings,
            row.lanes(),
            if row.alone() { "query" } else { "key-value" }
        )
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (stage, row) = (self.plan(), self.row());
        let mut writer = Writer::new(&self.heading(), &format!("{pipeline}, stage {}", self.stage));
        self.shape.constants(&mut writer);
        functions::chunk_list_constants(&mut writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("HALVINGS", stage.halvings, "two probes each")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query");
        if self.soft() {
            writer.constant("SCORE_ROWS", stage.rows(), "rows of a head that have scores: the first is the query's");
        } else {
            writer.float("NEVER", -32000.0, "score of a chunk without a probe");
        }
        writer
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", self.tuning.threads, "threads of a block")
            .constant("VECTOR", row.vector(), row.loads())
            .constant("LANES", row.lanes(), "lanes that read one probe together")
            .constant("TEAMS", 32 / row.lanes(), "such teams in a warp");
        if !self.together() {
            writer.constant("DESCENTS", DESCENTS, "chunks that a team descends at a time");
            if row.alone() {
                writer.constant("HEADS", 1, "query heads that descend the chunks of one list");
            }
        }
        row.rotation_constants(&mut writer);
        cached::vectors(&mut writer, self.shape);
        row.parts(&mut writer);
        if !self.soft() {
            writer.text(ORDERED);
        }
        row.rotation_functions(&mut writer);
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
        let descend = if self.together() { self.descend_together() } else { self.descend() };
        writer.text(&row.text(&descend));
        row.kernel(name, writer, self.operands(|stage| Buffer::CachedLists { stage }))
    }

    /// The loop in which every head descends by itself.
    fn descend(&self) -> String {
        let clamp =
            if self.stage == 0 { "min(left[i] + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)" } else { "left[i] + CHUNK" };
        let (fragments, load, for_right) = match self.plan().rope {
            ScanRope::Relative => {
                ("float left_query[DESCENTS][VECTOR], right_query[DESCENTS][VECTOR];", LOAD_TWO, "right_query")
            }
            ScanRope::ChunkIndexed => ("float left_query[DESCENTS][VECTOR];", LOAD_TURNED, "left_query"),
            ScanRope::Infllm | ScanRope::None | ScanRope::DynamicExtend | ScanRope::SelfExtend => {
                ("float left_query[DESCENTS][VECTOR];", LOAD_ONE, "left_query")
            }
        };
        let (turn, left_key, right_key) = if self.row().turns_keys() {
            (TURN, "left_key[i].at[e]", "right_key[i].at[e]")
        } else {
            ("", "to_float(left_probe[i].at[e])", "to_float(right_probe[i].at[e])")
        };
        let descend = DESCEND
            .replace("$TURN\n", turn.trim_start_matches('\n'))
            .replace("$LEFT_KEY", left_key)
            .replace("$RIGHT_KEY", right_key);
        let descend = self.vectors(&descend);
        let write = if self.soft() {
            "row_scores[static_cast<unsigned long long>($FIRST_HEAD + (base + i * TEAMS + team) % $HEADS) * SCORE_ROWS * row_stride +\n                           (base + i * TEAMS + team) / $HEADS] = best[i];".to_owned()
        } else {
            format!(
                "atomic_max(&scores[{}(base + i * TEAMS + team) / $HEADS], ordered(max(best[i], NEVER)));",
                self.score_row()
            )
        };
        self.halve(&descend, "[i]", "best[i], ", clamp)
            .replace("$FRAGMENTS", fragments)
            .replace("$LOAD\n", load.trim_start_matches('\n'))
            .replace("$FOR_RIGHT", for_right)
            .replace("$WRITE", &write)
    }

    /// The loop in which all heads of a group take the same halves.
    fn descend_together(&self) -> String {
        let row = self.row();
        let clamp = if self.stage == 0 { "min(left + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)" } else { "left + CHUNK" };
        let (turn, left_key, right_key) = if row.turns_keys() {
            (TURN_TOGETHER, "left_key.at[e]", "right_key.at[e]")
        } else {
            ("", "to_float(left_probe.at[e])", "to_float(right_probe.at[e])")
        };
        let together = TOGETHER
            .replace("$TURN\n", turn.trim_start_matches('\n'))
            .replace("$LEFT_KEY", left_key)
            .replace("$RIGHT_KEY", right_key);
        self.halve(&self.vectors(&together), "", "best[head], ", clamp)
            .replace("$ANGLES\n", row.angles())
            .replace("$QUERY\n", &row.query())
            .replace("$FOR_RIGHT", if row.twice { "right_query" } else { "query" })
            .replace("$WRITE\n", &row.write())
    }

    /// `text` with the loads of probes.
    fn vectors(&self, text: &str) -> String {
        let indent = if self.together() { "            " } else { "                " };
        let row = |token: &str| self.kept.row(token, &format!("cache_row(page_table, active ? {token} : 0, kv_head)"));
        let vector = |row| self.row().part("Vector", &cached::vector(self.shape, self.kept.keys(), row));
        text.replace("$STAYS\n", &self.kept.test(indent))
            .replace("$LEFT_ROW", &row("$LEFT"))
            .replace("$RIGHT_ROW", &row("$RIGHT"))
            .replace("$LEFT_VECTOR", &vector("left_row"))
            .replace("$RIGHT_VECTOR", &vector("right_row"))
    }

    /// What of the loops the words of the halving say.
    fn halve(&self, text: &str, index: &str, best: &str, clamp: &str) -> String {
        let (token, left, right) = probe_texts(self.halving.probe, index);
        let (sentence, keep) = match self.halving.chunk_score {
            ChunkScore::RunningMax => {
                ("The score is the best probe of all halvings, not the one the descent ends at.", format!("max({best}"))
            }
            ChunkScore::Last => ("The score is that of the half taken last.", String::new()),
        };
        let (open, close) = if keep.is_empty() { ("", "") } else { (keep.as_str(), ")") };
        text.replace("$SENTENCE", sentence)
            .replace("$TOKEN", token)
            .replace("$CLAMP", clamp)
            .replace("$LEFT", &left)
            .replace("$RIGHT", &right)
            .replace("$KEEP", open)
            .replace("$END", close)
    }

    /// Where the scores of the query block's ranking begin: a decoding step has one query block.
    fn score_row(&self) -> &'static str {
        match self.layer.ranking {
            Ranking::All => "",
            Ranking::KvGroup => "kv_head * score_stride + ",
            Ranking::Each if self.row().alone() => "query_head * score_stride + ",
            Ranking::Each => "(kv_head * GROUP + (base + i * TEAMS + team) % GROUP) * score_stride + ",
        }
    }
}

impl Tune for ScanRow {
    fn stem(&self, pipeline: &str) -> String {
        let family = format!("scan_decode{}", scoring_words(self.plan()));
        stem(&family, pipeline, self.shape, &self.layer, self.stage)
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::ScanDecode(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        scan_space(WARPS)
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::ScanDecode(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

const LOAD_ONE: &str = r"
            for (int e = 0; e < VECTOR; ++e) left_query[i][e] = queries[head * HEAD_DIM + $PART + e];
";

const LOAD_TWO: &str = r"
            for (int e = 0; e < VECTOR; ++e) {
                left_query[i][e] = queries[head * HEAD_DIM + $PART + e];
                right_query[i][e] = queries[($HEADS + head) * HEAD_DIM + $PART + e];
            }
";

const LOAD_TURNED: &str = r"
            // A key's position is the index of its chunk. Turning the query back by it once serves all of its probes.
            const int distance = max(0, min(position, chunks + SCAN_WINDOW) - chunk);
            for (int e = 0; e < VECTOR; ++e) {
                const int element = $PART + e;
                const float2 angle = rope_table[distance * HALF + element % HALF];
                const float here = queries[head * HEAD_DIM + element];
                const float there = queries[head * HEAD_DIM + (element + HALF) % HEAD_DIM];
                left_query[i][e] = here * angle.x + (element < HALF ? -there : there) * angle.y;
            }
";

const TURN: &str = r"
            Turned left_key[DESCENTS], right_key[DESCENTS];
            for (int i = 0; i < DESCENTS; ++i) {
                const bool active = left[i] < right[i] && left[i] <= limit;
                const int middle = (left[i] + right[i]) / 2;
                left_key[i] = turn_back(left_probe[i], active ? $LEFT : 0, position, rope_table, lane);
                right_key[i] = turn_back(right_probe[i], active ? $RIGHT : 0, position, rope_table, lane);
            }
";

const TURN_TOGETHER: &str = r"
            const Turned left_key = turn_back(left_probe, active ? $LEFT : 0, position, rope_table, lane);
            const Turned right_key = turn_back(right_probe, active ? $RIGHT : 0, position, rope_table, lane);
";

const DESCEND: &str = r"
    const int items = chunks * $HEADS;
    const int lane = thread % LANES, team = thread % 32 / LANES;
    const int warps = gridDim.x * (THREADS / 32), warp = blockIdx.x * (THREADS / 32) + thread / 32;
    // The loop is the same for all lanes of a warp, because they exchange partial products.
    for (int base = warp * TEAMS * DESCENTS; base < items; base += warps * TEAMS * DESCENTS) {
        // The list is ascending: where one chunk lies beyond the limit, so does every later one.
        if ($START(base / $HEADS) > limit) break;
        int left[DESCENTS], right[DESCENTS];
        float best[DESCENTS];
        $FRAGMENTS
        for (int i = 0; i < DESCENTS; ++i) {
            const int item = base + i * TEAMS + team;
            const int chunk = min(item / $HEADS, chunks - 1), head = item % $HEADS;
            left[i] = $START(chunk);
            right[i] = item < items ? $CLAMP : left[i];
            best[i] = LOWEST;
$LOAD
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it. An inactive chunk probes token 0 and ignores the product.
            float left_score[DESCENTS], right_score[DESCENTS];
            Vector left_probe[DESCENTS], right_probe[DESCENTS];
            for (int i = 0; i < DESCENTS; ++i) {
                const bool active = left[i] < right[i] && left[i] <= limit;
                const int middle = (left[i] + right[i]) / 2;
$STAYS
                const unsigned long long left_row = $LEFT_ROW;
                const unsigned long long right_row = $RIGHT_ROW;
                left_probe[i] = $LEFT_VECTOR;
                right_probe[i] = $RIGHT_VECTOR;
            }
$TURN
            for (int i = 0; i < DESCENTS; ++i) {
                left_score[i] = right_score[i] = 0.0f;
                for (int e = 0; e < VECTOR; ++e) {
                    left_score[i] += left_query[i][e] * $LEFT_KEY;
                    right_score[i] += $FOR_RIGHT[i][e] * $RIGHT_KEY;
                }
                for (int mask = LANES / 2; mask > 0; mask /= 2) {
                    left_score[i] += shuffle_xor(left_score[i], mask);
                    right_score[i] += shuffle_xor(right_score[i], mask);
                }
                // A tie goes right. $SENTENCE
                if (left[i] < right[i] && left[i] <= limit) {
                    const int middle = (left[i] + right[i]) / 2;
                    if (left_score[i] > right_score[i]) {
                        right[i] = middle;
                    } else {
                        left[i] = middle;
                    }
                    best[i] = $KEEPmax(left_score[i], right_score[i])$END;
                }
            }
        }
        for (int i = 0; i < DESCENTS; ++i)
            if (lane == 0 && best[i] > LOWEST)
                $WRITE
    }
}
";

const TOGETHER: &str = r"
    const int lane = thread % LANES, team = thread % 32 / LANES;
    const int warps = gridDim.x * (THREADS / 32), warp = blockIdx.x * (THREADS / 32) + thread / 32;
    // The loop is the same for all lanes of a warp, because they exchange partial products.
    for (int base = warp * TEAMS; base < chunks; base += warps * TEAMS) {
        // The list is ascending: where one chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
        const int chunk = min(base + team, chunks - 1);
        int left = $START(chunk), right = base + team < chunks ? $CLAMP : left;
        const bool scored = left < right && left <= limit;
$ANGLES
        float best[GROUP];
        for (int head = 0; head < GROUP; ++head) best[head] = LOWEST;
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it, and is loaded once for the group. An inactive chunk probes
            // token 0 and ignores the product.
            const bool active = left < right && left <= limit;
            const int middle = (left + right) / 2;
$STAYS
            const unsigned long long left_row = $LEFT_ROW;
            const unsigned long long right_row = $RIGHT_ROW;
            const Vector left_probe = $LEFT_VECTOR;
            const Vector right_probe = $RIGHT_VECTOR;
$TURN
            float left_score = LOWEST, right_score = LOWEST, own_left[GROUP], own_right[GROUP];
#pragma unroll
            for (int head = 0; head < GROUP; ++head) {
$QUERY
                own_left[head] = own_right[head] = 0.0f;
                for (int e = 0; e < VECTOR; ++e) {
                    own_left[head] += query[e] * $LEFT_KEY;
                    own_right[head] += $FOR_RIGHT[e] * $RIGHT_KEY;
                }
                for (int mask = LANES / 2; mask > 0; mask /= 2) {
                    own_left[head] += shuffle_xor(own_left[head], mask);
                    own_right[head] += shuffle_xor(own_right[head], mask);
                }
                left_score = max(left_score, own_left[head]);
                right_score = max(right_score, own_right[head]);
            }
            // The head that wants a half most decides for the group, and a tie goes right.
            // $SENTENCE
            if (active) {
                if (left_score > right_score) {
                    right = middle;
                } else {
                    left = middle;
                }
                for (int head = 0; head < GROUP; ++head)
                    best[head] = $KEEPleft_score > right_score ? own_left[head] : own_right[head]$END;
            }
        }
$WRITE
    }
}
";
