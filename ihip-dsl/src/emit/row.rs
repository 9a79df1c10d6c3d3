//! The one query of a decoding step in shared memory, and the chunks that its heads go through: what the decoding scans
//! share.

use super::extend;
use super::functions::{ROTATE, Shape};
use super::scoring::{self, Operand};
use super::writer::Writer;
use super::{Family, Kernel};
use crate::tuning::{ScanDecode, Tuning};
use crate::{PrunedLayer, Ranking, ScanRope, StagePlan};

/// Enough warps over all lists to fill a large chip, whatever the context.
pub(super) const DEFAULT: ScanDecode = ScanDecode { threads: 128, warps: 8192 };
/// Warps that may be chosen.
pub(super) const WARPS: [usize; 4] = [2048, 4096, 8192, 16384];

/// What may be chosen for a scan of a decoding step.
pub(super) fn scan_space(warps: [usize; 4]) -> Vec<Tuning> {
    let choices = [64, 128, 256].into_iter().flat_map(|threads| warps.map(|warps| ScanDecode { threads, warps }));
    choices.map(Tuning::ScanDecode).collect()
}

/// What a block of threads works on: the chunks of one list.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) shape: Shape,
    pub(super) layer: &'a PrunedLayer,
    pub(super) stage: usize,
    /// Whether all heads of a group are needed even where one has the list alone.
    pub(super) together: bool,
    /// Whether a query stands nearer to right branches than to left ones: then there are two copies.
    pub(super) twice: bool,
    pub(super) tuning: ScanDecode,
}

impl Row<'_> {
    pub(super) fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    /// Elements of a key that a lane holds: 16 bytes of them, no more than have partners in another lane, and so many that
    /// a warp has a key.
    pub(super) fn vector(&self) -> usize {
        (16 * 8 / self.shape.kv().bits()).min(16).max(self.padded() / 32)
    }

    /// Elements of a head, up to a power of two.
    fn padded(&self) -> usize {
        self.shape.head_dim().next_power_of_two()
    }

    /// Whether every lane of a team has a part of a key.
    fn full(&self) -> bool {
        self.padded() == self.shape.head_dim()
    }

    /// What they are.
    pub(super) fn loads(&self) -> &'static str {
        match self.vector() * self.shape.kv().bits() {
            256 => "elements of two 16-byte loads",
            128 => "elements of a 16-byte load",
            _ => "elements of an 8-byte load",
        }
    }

    /// Lanes that read one key together.
    pub(super) fn lanes(&self) -> usize {
        self.padded() / self.vector()
    }

    /// Whether heads of a group have lists of their own: then a block of threads works for one of them.
    pub(super) fn alone(&self) -> bool {
        self.layer.ranking == Ranking::Each && self.stage > 0
    }

    pub(super) fn grid(&self) -> [u32; 3] {
        let lists = if self.alone() { self.shape.query_heads() } else { self.shape.kv_heads() };
        [self.tuning.warps.div_ceil(lists * self.tuning.threads / 32) as u32, lists as u32, 1]
    }

    /// The list of chunks as a parameter.
    pub(super) fn parents(&self) -> &'static str {
        match (self.stage, self.layer.ranking) {
            (0, _) => "",
            (_, Ranking::All) => " const int* kept,",
            (_, Ranking::KvGroup | Ranking::Each) => " const int* parents,",
        }
    }

    /// The rotations as a parameter.
    pub(super) fn rope_table(&self) -> &'static str {
        if self.plan().rope == ScanRope::None { "" } else { " const float2* __restrict__ rope_table," }
    }

    /// What the scan writes as parameters.
    pub(super) fn scores(&self) -> &'static str {
        if scoring::soft(self.plan()) {
            "float* row_scores, int row_stride"
        } else {
            "unsigned* scores, int score_stride"
        }
    }

    /// The kernel of a text that is complete.
    pub(super) fn kernel(&self, name: &str, writer: Writer, operands: Vec<Operand>) -> Kernel {
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(operands),
            threads: self.tuning.threads as u32,
            shared_bytes: 0,
        }
    }

    /// What a launch passes, the list under the name of [`Row::parents`].
    pub(super) fn named(&self, mut operands: Vec<Operand>) -> Vec<Operand> {
        let list = operands.iter_mut().find(|operand| operand.argument.name == "parents");
        if let Some(list) = list.filter(|_| self.layer.ranking == Ranking::All) {
            list.argument.name = "kept";
        }
        operands
    }

    /// Defines where a block of threads works, and brings the queries into shared memory.
    pub(super) fn load(&self, writer: &mut Writer) {
        let copies = if self.twice { "2 * " } else { "" };
        let list = if self.stage == 0 { "step[STEP_T_MAX]" } else { "kept" };
        let own =
            if self.alone() { "query_head = blockIdx.y, kv_head = query_head / GROUP" } else { "kv_head = blockIdx.y" };
        let kept = match (self.stage, self.layer.ranking) {
            (0, _) | (_, Ranking::All) => "",
            (_, Ranking::KvGroup) => "    const int* const kept = parents + kv_head * (KEPT + 1);\n",
            (_, Ranking::Each) => "    const int* const kept = parents + query_head * (KEPT + 1);\n",
        };
        let place = PLACE.replace("$COPIES", copies).replace("$LIST", list).replace("$OWN", own);
        writer.more(&self.text(&place.replace("$KEPT", kept)));
        let turn = match self.plan().rope {
            ScanRope::Relative if self.twice => TURN_TWICE,
            ScanRope::Relative | ScanRope::Infllm => {
                "        rotate(x, y, rope_table[SCAN_WINDOW * HALF + element]);\n"
            }
            // Keys are turned by the distance, or the query is for each chunk.
            ScanRope::ChunkIndexed | ScanRope::None | ScanRope::DynamicExtend | ScanRope::SelfExtend => "",
        };
        writer.text(&self.text(&QUERIES.replace("$TURN\n", turn)));
    }

    /// `text` for the heads of a group or for one of them, and for the list of the stage.
    pub(super) fn text(&self, text: &str) -> String {
        let one = self.alone() && !self.together;
        text.replace("$FIRST_HEAD", if one { "query_head" } else { "kv_head * GROUP" })
            .replace("$HEADS", if one { "HEADS" } else { "GROUP" })
            .replace("$START(", if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " })
            .replace("$PART", if self.full() { "lane * VECTOR" } else { "part_of(lane)" })
    }

    /// Defines where a lane's part of a key begins, unless parts simply follow one another. `LANES` and `HALF` are defined.
    pub(super) fn parts(&self, writer: &mut Writer) {
        if !self.full() {
            writer.text(PARTS);
        }
    }

    /// What a lane has of a key: `load`, which is of type `part`, or zeros.
    pub(super) fn part(&self, part: &str, load: &str) -> String {
        if self.full() { load.to_owned() } else { format!("has_part(lane) ? {load} : {part}{{}}") }
    }

    /// Defines what turns the query by its distance to a chunk, where that differs from chunk to chunk.
    pub(super) fn angles(&self) -> &'static str {
        if self.plan().rope == ScanRope::ChunkIndexed { ANGLES.trim_start_matches('\n') } else { "" }
    }

    /// Whether every key stands at a distance of its own, by which it is turned once it is loaded.
    pub(super) fn turns_keys(&self) -> bool {
        extend::of_scan(self.plan().rope).is_some()
    }

    /// Constants of the distances.
    pub(super) fn rotation_constants(&self, writer: &mut Writer) {
        if let Some(extension) = extend::of_scan(self.plan().rope) {
            extend::constants(writer, self.shape, extension);
        }
    }

    /// Device functions that turn the query or keys.
    pub(super) fn rotation_functions(&self, writer: &mut Writer) {
        if matches!(self.plan().rope, ScanRope::Relative | ScanRope::Infllm) {
            writer.text(ROTATE);
        }
        if let Some(extension) = extend::of_scan(self.plan().rope) {
            extend::functions(writer, extension);
            writer.text(&self.text(extend::TURN_BACK));
        }
    }

    /// Brings a lane's part of a head's query into registers.
    pub(super) fn query(&self) -> String {
        let text = match self.plan().rope {
            ScanRope::ChunkIndexed => QUERY_TURNED,
            _ if self.twice => QUERY_TWICE,
            _ => QUERY,
        };
        self.text(text.trim_start_matches('\n'))
    }

    /// Writes a chunk's scores of all heads, `best`.
    pub(super) fn write(&self) -> String {
        let own = if self.alone() && self.together { "if (kv_head * GROUP + head == query_head) " } else { "" };
        let text = if scoring::soft(self.plan()) {
            WRITE_ROWS.replace("$OWN", own)
        } else {
            match self.layer.ranking {
                Ranking::All => WRITE_SHARED.replace("$ROW", ""),
                Ranking::KvGroup => WRITE_SHARED.replace("$ROW", "kv_head * score_stride + "),
                Ranking::Each => WRITE_EACH.replace("$OWN", own),
            }
        };
        self.text(text.trim_start_matches('\n'))
    }
}

/// What a lane loads of a key.
pub(super) const VECTORS: &str = r"
// Sixteen bytes of a key: one load.
struct alignas(16) Vector {
    Cached at[VECTOR];
};
";

const PARTS: &str = r"
// Where a lane's part of a key begins: half of the lanes share each half of it, so that elements which turn together lie
// half of the lanes apart. Lanes beyond the end of a half have no part of it.
inline int part_of(int lane) {
    return lane / (LANES / 2) * HALF + min(lane % (LANES / 2) * VECTOR, HALF - VECTOR);
}

inline bool has_part(int lane) { return lane % (LANES / 2) * VECTOR < HALF; }
";

const PLACE: &str = r"
    SHARED(float, queries, $COPIES$HEADS * HEAD_DIM);
    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    const int $OWN, thread = threadIdx.x;
    const int limit = position - SCAN_WINDOW;
$KEPT    const int chunks = chunk_count($LIST);
";

const QUERIES: &str = r"
    for (int item = thread; item < $HEADS * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Activation* const query =
            &qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + ($FIRST_HEAD + head) * HEAD_DIM + element];
        float x = to_float(query[0]) * QUERY_SCALE, y = to_float(query[HALF]) * QUERY_SCALE;
$TURN
        queries[head * HEAD_DIM + element] = x;
        queries[head * HEAD_DIM + element + HALF] = y;
    }
    sync_block();
";

const TURN_TWICE: &str = r"        // Left probes are at position 0, right ones at 1, the query at SCAN_WINDOW + 1: what counts is the distance.
        float right_x = x, right_y = y;
        rotate(right_x, right_y, rope_table[SCAN_WINDOW * HALF + element]);
        queries[($HEADS + head) * HEAD_DIM + element] = right_x;
        queries[($HEADS + head) * HEAD_DIM + element + HALF] = right_y;
        rotate(x, y, rope_table[(SCAN_WINDOW + 1) * HALF + element]);
";

const ANGLES: &str = r"
        // A key's position is the index of its chunk. Turning the query back by it serves all keys of the chunk.
        const int distance = max(0, min(position, chunks + SCAN_WINDOW) - chunk);
        float2 angle[VECTOR];
        for (int e = 0; e < VECTOR; ++e) angle[e] = rope_table[distance * HALF + ($PART + e) % HALF];
";

const QUERY: &str = r"
                float query[VECTOR];
                for (int e = 0; e < VECTOR; ++e) query[e] = queries[head * HEAD_DIM + $PART + e];
";

const QUERY_TWICE: &str = r"
                float query[VECTOR], right_query[VECTOR];
                for (int e = 0; e < VECTOR; ++e) {
                    query[e] = queries[head * HEAD_DIM + $PART + e];
                    right_query[e] = queries[($HEADS + head) * HEAD_DIM + $PART + e];
                }
";

const QUERY_TURNED: &str = r"
                float query[VECTOR];
                for (int e = 0; e < VECTOR; ++e) {
                    const int element = $PART + e;
                    const float here = queries[head * HEAD_DIM + element];
                    const float there = queries[head * HEAD_DIM + (element + HALF) % HEAD_DIM];
                    query[e] = here * angle[e].x + (element < HALF ? -there : there) * angle[e].y;
                }
";

const WRITE_SHARED: &str = r"
        float score = best[0];
        for (int head = 1; head < $HEADS; ++head) score = max(score, best[head]);
        if (lane == 0 && scored) atomic_max(&scores[$ROWchunk], ordered(max(score, NEVER)));
";

const WRITE_EACH: &str = r"
        if (lane == 0 && scored)
            for (int head = 0; head < $HEADS; ++head)
                $OWNatomic_max(&scores[static_cast<unsigned long long>($FIRST_HEAD + head) * score_stride + chunk], ordered(max(best[head], NEVER)));
";

const WRITE_ROWS: &str = r"
        if (lane == 0 && scored)
            for (int head = 0; head < $HEADS; ++head)
                $OWNrow_scores[static_cast<unsigned long long>($FIRST_HEAD + head) * SCORE_ROWS * row_stride + chunk] = best[head];
";
