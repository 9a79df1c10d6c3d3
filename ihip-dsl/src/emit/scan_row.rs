//! Decoding: one query descends every chunk it may see, spread over the whole chip.
//!
//! A few lanes hold one query head and read one probe together, so that every load is 16 bytes a lane and every chunk
//! costs two loads a halving. Heads of a group descend the same chunk side by side: their first probes are the same.

use super::functions::{self, CACHE_ROW, ORDERED, ROTATE, Shape};
use super::scan::{scan_arguments, scan_constants, stem};
use super::writer::Writer;
use super::{Family, Kernel};
use crate::{PrunedLayer, Ranking, ScanRope};

const THREADS: usize = 128;
/// Chunks that a team of lanes descends at a time: each adds two loads in flight.
const DESCENTS: usize = 2;
/// Blocks of threads of a launch, over all key-value heads: enough to fill a large chip, whatever the context.
const BLOCKS: usize = 2048;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanRow {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
}

impl ScanRow {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Self {
        Self { shape, layer: scan_constants(layer, stage), stage }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        stem("scan_decode", pipeline, self.shape, &self.layer, self.stage)
    }

    /// Whether heads of a group have lists of their own: then each descends by itself.
    fn alone(&self) -> bool {
        self.layer.ranking == Ranking::Each && self.stage > 0
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        let lists = if self.alone() { self.shape.query_heads() } else { self.shape.kv_heads() };
        [BLOCKS.div_ceil(lists) as u32, lists as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let stage = &self.layer.stages[self.stage];
        let rope = self.layer.stages[self.stage].rope;
        let vector = 16 / self.shape.kv().bytes();
        let lanes = self.shape.head_dim() / vector;
        let heading = format!(
            "Decoding, stage {}: scores chunks of {} tokens for one query by {} halvings.\n\
             {lanes} lanes take one head and {DESCENTS} chunks at a time; blocks of threads stride over the chunks of a {} head.",
            self.stage,
            stage.chunk,
            stage.halvings,
            if self.alone() { "query" } else { "key-value" }
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
            .constant("THREADS", THREADS, "threads of a block")
            .constant("VECTOR", vector, "elements of a 16-byte load")
            .constant("LANES", lanes, "lanes that read one probe together")
            .constant("TEAMS", 32 / lanes, "such teams in a warp")
            .constant("DESCENTS", DESCENTS, "chunks that a team descends at a time");
        if self.alone() {
            writer.constant("HEADS", 1, "query heads that descend the chunks of one list");
        }
        writer.text(VECTORS).text(CACHE_ROW).text(ORDERED);
        if rope != ScanRope::None && rope != ScanRope::ChunkIndexed {
            writer.text(ROTATE);
        }
        functions::chunk_list_of_row(&mut writer, self.stage);
        let table = if rope == ScanRope::None { "" } else { " const float2* __restrict__ rope_table," };
        let ranking = self.layer.ranking;
        let parents = match (self.stage, ranking) {
            (0, _) => "",
            (_, Ranking::All) => " const int* kept,",
            (_, Ranking::KvGroup | Ranking::Each) => " const int* parents,",
        };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{table}\n   {parents} unsigned* scores, int score_stride) {{"
        ));
        let copies = if rope == ScanRope::Relative { "2 * " } else { "" };
        let list = if self.stage == 0 { "step[STEP_T_MAX]" } else { "kept" };
        let place = PLACE.replace("$COPIES", copies).replace("$LIST", list).replace("$OWN", self.head_of_block());
        let kept = match (self.stage, ranking) {
            (0, _) | (_, Ranking::All) => "",
            (_, Ranking::KvGroup) => "    const int* const kept = parents + kv_head * (KEPT + 1);\n",
            (_, Ranking::Each) => "    const int* const kept = parents + query_head * (KEPT + 1);\n",
        };
        writer.more(&self.heads(&place.replace("$KEPT", kept)));
        let queries = QUERIES.replace(
            "$TURN\n",
            match rope {
                ScanRope::Relative => TURN_TWICE,
                ScanRope::Infllm => "        rotate(x, y, rope_table[SCAN_WINDOW * HALF + element]);\n",
                ScanRope::ChunkIndexed | ScanRope::None => "",
                ScanRope::DynamicExtend | ScanRope::SelfExtend => {
                    unreachable!("no word of the language leads here yet")
                }
            },
        );
        writer.text(&self.heads(&queries));
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let clamp =
            if self.stage == 0 { "min(left[i] + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)" } else { "left[i] + CHUNK" };
        let (fragments, load, for_right) = match rope {
            ScanRope::Relative => {
                ("float left_query[DESCENTS][VECTOR], right_query[DESCENTS][VECTOR];", LOAD_TWO, "right_query")
            }
            ScanRope::ChunkIndexed => ("float left_query[DESCENTS][VECTOR];", LOAD_TURNED, "left_query"),
            ScanRope::DynamicExtend | ScanRope::SelfExtend => unreachable!("no word of the language leads here yet"),
            ScanRope::Infllm | ScanRope::None => ("float left_query[DESCENTS][VECTOR];", LOAD_ONE, "left_query"),
        };
        let descend = DESCEND
            .replace("$START(", start)
            .replace("$RIGHT", clamp)
            .replace("$FRAGMENTS", fragments)
            .replace("$LOAD\n", load.trim_start_matches('\n'))
            .replace("$FOR_RIGHT", for_right)
            .replace("$ROW", self.score_row());
        writer.text(&self.heads(&descend));
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scan_arguments(self.shape, rope, self.stage),
            threads: THREADS as u32,
            shared_bytes: 0,
        }
    }

    /// The head that a block of threads works for.
    fn head_of_block(&self) -> &'static str {
        if self.alone() { "query_head = blockIdx.y, kv_head = query_head / GROUP" } else { "kv_head = blockIdx.y" }
    }

    /// Where the scores of the query block's ranking begin: a decoding step has one query block.
    fn score_row(&self) -> &'static str {
        match self.layer.ranking {
            Ranking::All => "",
            Ranking::KvGroup => "kv_head * score_stride + ",
            Ranking::Each if self.alone() => "query_head * score_stride + ",
            Ranking::Each => "(kv_head * GROUP + (base + i * TEAMS + team) % GROUP) * score_stride + ",
        }
    }

    /// `text` for the heads of a group, or for one of them.
    fn heads(&self, text: &str) -> String {
        let first = if self.alone() { "query_head" } else { "kv_head * GROUP" };
        let text = text.replace("$FIRST_HEAD", first);
        text.replace("$HEADS", if self.alone() { "HEADS" } else { "GROUP" })
    }
}

const VECTORS: &str = r"
// Sixteen bytes of a key: one load.
struct alignas(16) Vector {
    Cached at[VECTOR];
};
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

const LOAD_ONE: &str = r"
            for (int e = 0; e < VECTOR; ++e) left_query[i][e] = queries[head * HEAD_DIM + lane * VECTOR + e];
";

const LOAD_TWO: &str = r"
            for (int e = 0; e < VECTOR; ++e) {
                left_query[i][e] = queries[head * HEAD_DIM + lane * VECTOR + e];
                right_query[i][e] = queries[($HEADS + head) * HEAD_DIM + lane * VECTOR + e];
            }
";

const LOAD_TURNED: &str = r"
            // A key's position is the index of its chunk. Turning the query back by it once serves all of its probes.
            const int distance = max(0, min(position, chunks + SCAN_WINDOW) - chunk);
            for (int e = 0; e < VECTOR; ++e) {
                const int element = lane * VECTOR + e;
                const float2 angle = rope_table[distance * HALF + element % HALF];
                const float here = queries[head * HEAD_DIM + element];
                const float there = queries[head * HEAD_DIM + (element + HALF) % HEAD_DIM];
                left_query[i][e] = here * angle.x + (element < HALF ? -there : there) * angle.y;
            }
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
            right[i] = item < items ? $RIGHT : left[i];
            best[i] = LOWEST;
$LOAD
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The middle token of each half stands for it. An inactive chunk probes token 0 and ignores the product.
            float left_score[DESCENTS], right_score[DESCENTS];
            Vector left_probe[DESCENTS], right_probe[DESCENTS];
            for (int i = 0; i < DESCENTS; ++i) {
                const bool active = left[i] < right[i] && left[i] <= limit;
                const int middle = (left[i] + right[i]) / 2;
                const unsigned long long left_row = cache_row(page_table, active ? (left[i] + middle) / 2 : 0, kv_head);
                const unsigned long long right_row = cache_row(page_table, active ? (middle + right[i]) / 2 : 0, kv_head);
                left_probe[i] = *reinterpret_cast<const Vector*>(&keys[left_row * HEAD_DIM + lane * VECTOR]);
                right_probe[i] = *reinterpret_cast<const Vector*>(&keys[right_row * HEAD_DIM + lane * VECTOR]);
            }
            for (int i = 0; i < DESCENTS; ++i) {
                left_score[i] = right_score[i] = 0.0f;
                for (int e = 0; e < VECTOR; ++e) {
                    left_score[i] += left_query[i][e] * to_float(left_probe[i].at[e]);
                    right_score[i] += $FOR_RIGHT[i][e] * to_float(right_probe[i].at[e]);
                }
                for (int mask = LANES / 2; mask > 0; mask /= 2) {
                    left_score[i] += shuffle_xor(left_score[i], mask);
                    right_score[i] += shuffle_xor(right_score[i], mask);
                }
                // A tie goes right. The score is the best probe of all halvings, not the one the descent ends at.
                if (left[i] < right[i] && left[i] <= limit) {
                    const int middle = (left[i] + right[i]) / 2;
                    if (left_score[i] > right_score[i]) {
                        right[i] = middle;
                    } else {
                        left[i] = middle;
                    }
                    best[i] = max(best[i], max(left_score[i], right_score[i]));
                }
            }
        }
        for (int i = 0; i < DESCENTS; ++i)
            if (lane == 0 && best[i] > LOWEST)
                atomic_max(&scores[$ROW(base + i * TEAMS + team) / $HEADS], ordered(max(best[i], NEVER)));
    }
}
";
