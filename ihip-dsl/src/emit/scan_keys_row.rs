//! Decoding, where chunks are not halved: one query meets the mean, the bounds or each of the keys of every chunk that
//! it may see, spread over the whole chip.
//!
//! A few lanes read one key together, so that every load is 16 bytes a lane, and multiply it with all heads of the group.

use super::cached;
use super::functions::{self, ORDERED, Shape};
use super::row::{DEFAULT, Row, WARPS, scan_space};
use super::scoring::{self, Output, Source, row_constants, scoring_words, stem};
use super::tune::Tune;
use super::writer::Writer;
use super::{Buffer, Kernel};
use crate::tuning::{ScanDecode, Tuning};
use crate::{PrunedLayer, StagePlan};

/// Keys of a chunk that a team of lanes loads at a time.
const AT_ONCE: usize = 4;
/// The same where it turns them: a turned key takes twice the registers.
const TURNED_AT_ONCE: usize = 2;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanKeysRow {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
    tuning: ScanDecode,
}

impl ScanKeysRow {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Self {
        Self { shape, layer: row_constants(layer, stage), stage, tuning: DEFAULT }
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        self.row().grid()
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        let output = if scoring::soft(self.plan()) { Output::RowScores } else { Output::Scores };
        let operands = scoring::operands(self.shape, &self.layer, self.stage, self.source(), output, parents);
        self.row().named(operands)
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    fn source(&self) -> Source {
        scoring::source(self.plan())
    }

    fn row(&self) -> Row<'_> {
        Row {
            shape: self.shape,
            layer: &self.layer,
            stage: self.stage,
            together: false,
            twice: false,
            tuning: self.tuning,
        }
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (plan, row) = (self.plan(), self.row());
        let what = match self.source() {
            Source::Means => "the mean of their keys",
            Source::Bounds => "the bounds of their keys",
            Source::Keys | Source::Paths => "every key of them",
        };
        let heading = format!(
            "Decoding, stage {}: scores chunks of {} tokens for one query by {what}.\n\
             {} lanes take one chunk at a time, for {}; blocks of threads stride over the chunks.",
            self.stage,
            plan.chunk,
            row.lanes(),
            if row.alone() { "one head" } else { "all heads of a group" },
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, stage {}", self.stage));
        self.shape.constants(&mut writer);
        self.constants(&mut writer);
        match self.source() {
            Source::Means => {
                writer.text(SUMMARY);
            }
            Source::Bounds => cached::bound_vectors(&mut writer, self.shape),
            Source::Keys | Source::Paths => cached::vectors(&mut writer, self.shape),
        }
        row.parts(&mut writer);
        if !scoring::soft(plan) {
            writer.text(ORDERED);
        }
        row.rotation_functions(&mut writer);
        functions::chunk_list_of_row(&mut writer, self.stage);
        writer.text(&self.signature(name));
        row.load(&mut writer);
        writer.text(&row.text(&self.scan()));
        row.kernel(name, writer, self.operands(|stage| Buffer::CachedLists { stage }))
    }

    /// Constants of the chunks, and of the lanes that score them.
    fn constants(&self, writer: &mut Writer) {
        let (plan, row) = (self.plan(), self.row());
        functions::chunk_list_constants(writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query");
        if scoring::soft(plan) {
            writer.constant("SCORE_ROWS", plan.rows(), "rows of a head that have scores: the first is the query's");
        } else {
            writer.float("NEVER", -32000.0, "score of a chunk that nobody may see");
        }
        if self.source() == Source::Keys {
            writer.float("LOWEST", f32::MIN, "below every product").constant(
                "AT_ONCE",
                if row.turns_keys() { TURNED_AT_ONCE } else { AT_ONCE }.min(plan.chunk),
                "keys of a chunk that a team loads at a time",
            );
        }
        writer
            .constant("THREADS", self.tuning.threads, "threads of a block")
            .constant("VECTOR", row.vector(), row.loads())
            .constant("LANES", row.lanes(), "lanes that read one key together")
            .constant("TEAMS", 32 / row.lanes(), "such teams in a warp");
        if row.alone() {
            writer.constant("HEADS", 1, "query heads that go through the chunks of one list");
        }
        row.rotation_constants(writer);
    }

    /// The entry, up to its brace.
    fn signature(&self, name: &str) -> String {
        let source = match self.source() {
            Source::Keys | Source::Paths => {
                "const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,"
            }
            Source::Means => "const float* __restrict__ means,\n   ",
            Source::Bounds if cached::scaled(self.shape) => "const float* __restrict__ bounds,\n   ",
            Source::Bounds => "const Cached* __restrict__ bounds,\n   ",
        };
        let row = self.row();
        format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, {source}{}{} {}) {{",
            row.rope_table(),
            row.parents(),
            row.scores()
        )
    }

    /// Goes through the chunks, with what is read of one and how it is scored.
    fn scan(&self) -> String {
        let row = self.row();
        let (load, score) = match self.source() {
            Source::Keys | Source::Paths => (KEYS, ""),
            Source::Means => (LOAD_MEAN, "score += query[e] * mean.at[e];"),
            Source::Bounds => {
                (LOAD_BOUNDS, "score += max(query[e] * to_float(least.at[e]), query[e] * to_float(greatest.at[e]));")
            }
        };
        let load = if score.is_empty() {
            load.to_owned()
        } else {
            format!("{load}{}", SUMMARY_SCORE.replace("$SCORE", score))
        };
        let bound =
            |at| row.part("Vector", &format!("*reinterpret_cast<const Vector*>(&bounds[{at} * HEAD_DIM + $PART])"));
        let (turn, key) = if row.turns_keys() { (TURN, "turned[i].at[e]") } else { ("", "to_float(held[i].at[e])") };
        SCAN.replace("$ANGLES\n", row.angles())
            .replace("$LOAD\n", load.trim_start_matches('\n'))
            .replace("$TURN\n", turn.trim_start_matches('\n'))
            .replace("$KEY", key)
            .replace("$VECTOR", &row.part("Vector", &cached::vector(self.shape, "keys", "row")))
            .replace("$MEAN", &row.part("Summary", "*reinterpret_cast<const Summary*>(&means[row * HEAD_DIM + $PART])"))
            .replace("$LEAST", &bound("row * 2"))
            .replace("$GREATEST", &bound("(row * 2 + 1)"))
            .replace("$QUERY\n", &row.query())
            .replace("$WRITE\n", &row.write())
    }
}

impl Tune for ScanKeysRow {
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

const SUMMARY: &str = r"
// A lane's part of a mean.
struct alignas(16) Summary {
    float at[VECTOR];
};
";

const SCAN: &str = r"
    const int lane = thread % LANES, team = thread % 32 / LANES;
    const int warps = gridDim.x * (THREADS / 32), warp = blockIdx.x * (THREADS / 32) + thread / 32;
    // The loop is the same for all lanes of a warp, because they exchange partial products.
    for (int base = warp * TEAMS; base < chunks; base += warps * TEAMS) {
        // The list is ascending: where one chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
        const int chunk = min(base + team, chunks - 1), first_token = $START(chunk);
        const bool scored = base + team < chunks && first_token <= limit;
$ANGLES
        float best[$HEADS];
$LOAD
$WRITE
    }
}
";

const LOAD_MEAN: &str = r"
        const unsigned long long row = static_cast<unsigned long long>(scored ? (first_token - SINK) / CHUNK : 0) * KV_HEADS + kv_head;
        const Summary mean = $MEAN;
";

const LOAD_BOUNDS: &str = r"
        const unsigned long long row = static_cast<unsigned long long>(scored ? (first_token - SINK) / CHUNK : 0) * KV_HEADS + kv_head;
        const Vector least = $LEAST;
        const Vector greatest = $GREATEST;
";

const SUMMARY_SCORE: &str = r"#pragma unroll
        for (int head = 0; head < $HEADS; ++head) {
$QUERY
                float score = 0.0f;
                for (int e = 0; e < VECTOR; ++e) $SCORE
                for (int mask = LANES / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
                best[head] = score;
        }
";

const TURN: &str = r"
            Turned turned[AT_ONCE];
            for (int i = 0; i < AT_ONCE; ++i) {
                const int token = scored ? first_token + min(key + i, CHUNK - 1) : 0;
                turned[i] = turn_back(held[i], token, position, rope_table, lane);
            }
";

const KEYS: &str = r"
        for (int head = 0; head < $HEADS; ++head) best[head] = LOWEST;
        for (int key = 0; key < CHUNK; key += AT_ONCE) {
            // All loads are under way before the first is used. The last key may be there twice.
            Vector held[AT_ONCE];
            for (int i = 0; i < AT_ONCE; ++i) {
                const int token = scored ? first_token + min(key + i, CHUNK - 1) : 0;
                const unsigned long long row = cache_row(page_table, token, kv_head);
                held[i] = $VECTOR;
            }
$TURN
#pragma unroll
            for (int head = 0; head < $HEADS; ++head) {
$QUERY
                for (int i = 0; i < AT_ONCE; ++i) {
                    float score = 0.0f;
                    for (int e = 0; e < VECTOR; ++e) score += query[e] * $KEY;
                    for (int mask = LANES / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
                    best[head] = max(best[head], score);
                }
            }
        }
";
