//! Prefill, where chunks are not halved: every query block meets the mean, the bounds or each of the keys of every chunk
//! that its first query may see. With soft scores, also the keys that a descent took.
//!
//! A block of threads takes one query head of one query block. One key of each chunk of a group is in shared memory at
//! a time, beside the averaged queries, and is multiplied with all of them.

use super::cached;
use super::extend;
use super::functions::{self, ORDERED, QUADS, ROTATE, Shape};
use super::rows::{Heads, Product, Rotation, Rows, warps};
use super::scan::{BLOCKS, chunks_here, heads_of, ranking_here};
use super::scoring::{self, BLOCK_SCORES, Output, Source, path_length, scan_constants, scoring_words, stem};
use super::tile::Tile;
use super::writer::Writer;
use super::{Buffer, Family, Kernel};
use crate::{PrunedLayer, QueryReduction, Ranking, ScanRope, StagePlan};

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanKeys {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
}

impl ScanKeys {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Self {
        Self { shape, layer: scan_constants(layer, stage), stage }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        let words = scoring_words(self.plan());
        let family = if self.source() == Source::Paths { "scan_path" } else { "scan" };
        stem(&format!("{family}{words}"), pipeline, self.shape, &self.layer, self.stage)
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(crate) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        let blocks = rows.div_ceil(self.plan().query_block);
        let wanted = BLOCKS.div_ceil(blocks * self.shape.query_heads());
        let groups = chunks.div_ceil(self.rows().columns()).clamp(1, wanted);
        [groups as u32, self.shape.geometry.query_heads, blocks as u32]
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        let output = if self.soft() { Output::RowScores } else { Output::Scores };
        scoring::operands(self.shape, &self.layer, self.stage, self.source(), output, parents)
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    fn source(&self) -> Source {
        scoring::source(self.plan())
    }

    fn soft(&self) -> bool {
        scoring::soft(self.plan())
    }

    /// Whether each row has a bound of its own, of which the mean is taken: it is no product.
    fn sums(&self) -> bool {
        self.source() == Source::Bounds && !self.soft() && self.plan().scoring.query_reduction == QueryReduction::Mean
    }

    fn rotation(&self) -> Rotation {
        match (self.plan().rope, self.source()) {
            (ScanRope::None, _) => Rotation::None,
            (ScanRope::Relative, Source::Paths) => Rotation::Halves,
            // A key stands where a right branch does: at 1, or at 0 with the query one nearer.
            (ScanRope::Relative | ScanRope::Infllm, _) => Rotation::Queries("SCAN_WINDOW"),
            (ScanRope::ChunkIndexed, _) => Rotation::Chunks,
            (ScanRope::DynamicExtend | ScanRope::SelfExtend, _) => Rotation::Extended,
        }
    }

    fn rows(&self) -> Rows {
        let bounds = self.source() == Source::Bounds;
        Rows {
            rotation: self.rotation(),
            heads: Heads::One,
            mean: !self.soft() && !bounds && self.plan().scoring.query_reduction == QueryReduction::Mean,
            of_head: self.plan().rows(),
            warps: warps(self.shape),
            // Two rows of bounds a chunk: half as many chunks fit.
            least_warps: if bounds { 2 } else { 1 },
        }
    }

    /// Keys of a chunk, one after the other in shared memory.
    fn keys(&self) -> usize {
        match self.source() {
            Source::Keys => self.plan().chunk,
            Source::Paths => path_length(self.plan()),
            Source::Means | Source::Bounds => 1,
        }
    }

    /// Arrays of a key of each chunk in shared memory.
    fn tiles(&self) -> usize {
        if self.source() == Source::Bounds { 2 } else { 1 }
    }

    fn heading(&self) -> String {
        let plan = self.plan();
        let what = match self.source() {
            Source::Keys => "every key of them",
            Source::Paths => "the keys that their descent took",
            Source::Means => "the mean of their keys",
            Source::Bounds => "the bounds of their keys",
        };
        let end = if self.soft() {
            "every row of averaged queries has a score of its own.".to_owned()
        } else {
            let rows = match plan.scoring.query_reduction {
                QueryReduction::Max => "largest",
                QueryReduction::Mean => "mean",
            };
            let heads = heads_of(self.layer.ranking);
            format!("a chunk's score is\nthe {rows} over the rows of averaged queries, and the largest over {heads}.")
        };
        format!(
            "Prefill, stage {}: scores chunks of {} tokens for blocks of {} queries by {what}.\n\
             A block of threads takes one head of one query block and groups of {} chunks; {end}",
            self.stage,
            plan.chunk,
            plan.query_block,
            self.rows().columns()
        )
    }

    fn constants(&self, writer: &mut Writer) {
        let (plan, rows) = (self.plan(), self.rows());
        self.shape.constants(writer);
        functions::chunk_list_constants(writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("KEYS", self.keys(), "keys of a chunk, one after the other")
            .constant("QUERY_STRIDE", plan.query_stride, "neighbouring queries averaged into a row");
        rows.constants(writer);
        writer
            .constant("ROWS", rows.padded(), "rows of a block, padded for the product")
            .constant("TILE_ROWS", rows.tile_rows(), "of which this many are in shared memory at a time")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query");
        if self.soft() {
            writer.constant("SCORE_ROWS", plan.rows(), "rows of a head that have scores");
            if self.source() == Source::Paths {
                let descents = scoring::descents(self.shape, &self.layer, self.stage);
                writer.constant("DESCENTS", descents, "paths into a chunk: one a head or a group of heads");
            }
        } else {
            writer.float("NEVER", -32000.0, "score of a chunk that nobody may see").float(
                "LOWEST",
                f32::MIN,
                "below every product",
            );
        }
        writer
            .constant("THREADS", rows.threads(), "threads of a block")
            .constant("ROW_WARPS", rows.row_warps(), "warps side by side along the rows")
            .constant("CHUNKS", rows.columns(), "chunks of a group")
            .constant("STRIDE", self.shape.head_dim() + 4, "floats between rows in shared memory: no bank conflicts");
        if let Some(extension) = extend::of_scan(plan.rope) {
            extend::constants(writer, self.shape, extension);
        }
        functions::ranking_constant(writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
    }

    fn signature(&self, name: &str) -> String {
        let source = match self.source() {
            Source::Keys | Source::Paths => {
                "const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,"
            }
            Source::Means => "const float* __restrict__ means,\n   ",
            Source::Bounds if cached::scaled(self.shape) => "const float* __restrict__ bounds,\n   ",
            Source::Bounds => "const Cached* __restrict__ bounds,\n   ",
        };
        let rope = if self.rotation() == Rotation::None { "" } else { " const float2* __restrict__ rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        let paths = if self.source() == Source::Paths { " const int* __restrict__ paths," } else { "" };
        let output =
            if self.soft() { "float* row_scores, int row_stride" } else { "unsigned* scores, int score_stride" };
        format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, {source}{rope}{parents}{paths}\n    {output}) {{"
        )
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (rows, rotation, source) = (self.rows(), self.rotation(), self.source());
        let mut writer = Writer::new(&self.heading(), &format!("{pipeline}, stage {}", self.stage));
        self.constants(&mut writer);
        writer.text(QUADS);
        if matches!(source, Source::Keys | Source::Paths) {
            cached::rows(&mut writer, self.shape);
            cached::quads(&mut writer, self.shape);
        }
        if !self.soft() {
            writer.text(ORDERED);
        }
        if rotation != Rotation::None {
            writer.text(ROTATE);
        }
        if let Some(extension) = extend::of_scan(self.plan().rope) {
            extend::functions(&mut writer, extension);
        }
        functions::chunk_list(&mut writer, self.stage);
        rows.functions(&mut writer);
        if self.soft() {
            writer.text(KEEP_SCORE);
        }
        writer.text(&self.signature(name));
        self.place(&mut writer);
        if rows.whole() {
            writer.text(&rows.load());
        }
        writer.text(&self.group());
        self.tile(&mut writer);
        self.products(&mut writer);
        writer.more("        }");
        writer.more(&if self.soft() { "    }\n}".to_owned() } else { self.reduce() });
        let floats = rows.copy_floats(self.shape) + self.tiles() * rows.columns() * (self.shape.head_dim() + 4);
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(self.operands(|stage| Buffer::Lists { stage })),
            threads: rows.threads() as u32,
            shared_bytes: (floats * 4) as u32,
        }
    }

    /// Whether a slot has a rotary position.
    fn positions(&self) -> bool {
        self.rotation().turns_keys()
    }

    /// Where this block of threads works.
    fn place(&self, writer: &mut Writer) {
        let (shape, greatest) = if self.source() == Source::Bounds {
            ("[CHUNKS][STRIDE]: least elements", GREATEST.replace("$BOUND", cached::bound_word(self.shape)))
        } else {
            ("[CHUNKS][STRIDE]", String::new())
        };
        let mut arrays = String::new();
        if self.positions() {
            arrays.push_str("    SHARED(int, slot_position, CHUNKS);\n");
        }
        if self.soft() {
            arrays.push_str("    SHARED(int, slot_live, CHUNKS);\n");
        } else {
            arrays.push_str("    SHARED(float, largest, ROW_WARPS * CHUNKS);\n");
        }
        writer.more(&PLACE.replace("$SHAPE", shape).replace("$ARRAYS", &arrays).replace("$GREATEST", &greatest));
        if self.rotation() == Rotation::Extended {
            writer.more(extend::BLOCK);
        }
        ranking_here(writer, self.layer.ranking, !self.soft());
        writer.more(&chunks_here(self.stage, self.layer.ranking));
    }

    /// Opens the loops over groups of chunks and their keys, and finds each slot's key.
    fn group(&self) -> String {
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let token = match self.source() {
            Source::Keys => "scored ? first_token + key : 0",
            Source::Paths => "max(probe, 0) / 2",
            // The first of the chunk that its summary stands for.
            Source::Means | Source::Bounds => "scored ? first_token : SINK",
        };
        let row = match self.source() {
            Source::Keys | Source::Paths => format!("cache_row(page_table, {token}, kv_head)"),
            Source::Means => "(scored ? (first_token - SINK) / CHUNK : 0) * KV_HEADS + kv_head".to_owned(),
            Source::Bounds => "((scored ? (first_token - SINK) / CHUNK : 0) * KV_HEADS + kv_head) * 2".to_owned(),
        };
        let mut slot = String::new();
        if self.source() == Source::Paths {
            let descents = scoring::descents(self.shape, &self.layer, self.stage);
            let descent = if descents == self.shape.query_heads() { "head" } else { "kv_head" };
            slot.push_str(&format!(
                "                // A probe is twice its token, plus 1 where it stands for the right half; -1 where there was none.\n\
                 \x20               const unsigned long long path = static_cast<unsigned long long>(block * DESCENTS + {descent}) * KEYS + key;\n\
                 \x20               const int probe = scored ? paths[path * row_stride + chunk] : -1;\n"
            ));
        }
        slot.push_str(&format!("                slot_row[thread] = {row};\n"));
        match self.rotation() {
            Rotation::Halves => slot.push_str("                slot_position[thread] = max(probe, 0) % 2;\n"),
            Rotation::Chunks => slot.push_str(
                "                // A key's position is the index of its chunk in the list.\n                slot_position[thread] = min(chunk, chunks);\n",
            ),
            Rotation::Extended => {
                let position = extend::block_position(token);
                slot.push_str(&format!("                slot_position[thread] = {position};\n"));
            }
            Rotation::None | Rotation::Queries(_) | Rotation::QueriesTwice => {}
        }
        if self.soft() {
            let live = if self.source() == Source::Paths { "probe >= 0" } else { "scored" };
            slot.push_str(&format!("                slot_live[thread] = {live};\n"));
        }
        let scores = match (self.soft(), self.sums()) {
            (true, _) => OWN_SCORES.trim_matches('\n').to_owned(),
            (false, true) => "        float product[4] = {};".to_owned(),
            (false, false) => "        float product[4] = {LOWEST, LOWEST, LOWEST, LOWEST};".to_owned(),
        };
        GROUPS.replace("$START(", start).replace("$SLOT\n", &slot).replace("$SCORES", &scores)
    }

    /// Brings the keys of a group into shared memory.
    fn tile(&self, writer: &mut Writer) {
        let tile = |from, to| Tile {
            from,
            to,
            rows: ("CHUNKS", self.rows().columns()),
            threads: self.rows().threads(),
            shape: self.shape,
            loads: 16,
            indent: 12,
        };
        match self.source() {
            Source::Bounds => {
                writer.more(&tile("bounds", "slots").load_plain());
                writer.more(&tile("greatest", "greatest_slots").load_plain());
            }
            Source::Means if self.positions() => {
                writer.more(&tile("means", "slots").load_turned());
            }
            Source::Means => {
                writer.more(&tile("means", "slots").load_plain());
            }
            Source::Keys | Source::Paths if self.positions() => {
                writer.more(&tile("keys", "slots").load_turned());
            }
            Source::Keys | Source::Paths => {
                writer.more(&tile("keys", "slots").load_plain());
            }
        }
        writer.more("            sync_block();");
    }

    fn products(&self, writer: &mut Writer) {
        let rows = self.rows();
        let product = if self.soft() {
            Product::Scores
        } else if self.sums() {
            Product::Sum
        } else {
            Product::Largest
        };
        let product = match self.source() {
            Source::Bounds => {
                let turn = if self.positions() { TURN_BACK } else { "" };
                rows.reduce(product, &BOUND.replace("$TURN\n", turn.trim_start_matches('\n')))
            }
            _ => rows.product(product).replace("own_queries", "queries"),
        };
        if self.source() != Source::Bounds {
            writer.more("            const float* const warp_probes = &slots[warp / ROW_WARPS * 32 * STRIDE];");
        }
        if rows.whole() {
            writer.more(&product);
            return;
        }
        writer.more("            // More rows than fit into shared memory: they take turns.");
        writer.more("            for (int tile = 0; tile < ROWS; tile += TILE_ROWS) {\n            sync_block();");
        writer.more(&rows.load());
        writer.more("            sync_block();");
        writer.more(&product);
        writer.more("            }");
    }

    /// Reduces the rows and writes the scores of a group.
    fn reduce(&self) -> String {
        let (one, other, folded, none) = if self.sums() {
            (
                "product[j] += shuffle_xor(product[j], 8);",
                "product[j] += shuffle_xor(product[j], 16);",
                "score += largest[row_warp * CHUNKS + thread];",
                "0.0f",
            )
        } else {
            (
                "product[j] = max(product[j], shuffle_xor(product[j], 8));",
                "product[j] = max(product[j], shuffle_xor(product[j], 16));",
                "score = max(score, largest[row_warp * CHUNKS + thread]);",
                "LOWEST",
            )
        };
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        REDUCE
            .replace("$ONE", one)
            .replace("$OTHER", other)
            .replace("$FOLDED", folded)
            .replace("$NONE", none)
            .replace("$MEAN\n", if self.sums() { "            score /= static_cast<float>(live_rows);\n" } else { "" })
            .replace("$START(", start)
            .replace("$ROW", if self.layer.ranking == Ranking::All { BLOCK_SCORES } else { "score_row" })
    }
}

const GREATEST: &str = "    float* const greatest_slots = slots + CHUNKS * STRIDE;  // [CHUNKS][STRIDE]
    const $BOUND* const greatest = bounds + HEAD_DIM;       // of the same rows
";

const KEEP_SCORE: &str = r"
// A row's score of a chunk is that of the best of its keys; the first one finds nothing there.
inline void keep_score(float* score, float product, int key) { *score = key == 0 ? product : max(*score, product); }
";

const PLACE: &str = r"
    SHARED_DYNAMIC(float, queries);                         // [TILE_ROWS][STRIDE]
    float* const slots = queries + TILE_ROWS * STRIDE;      // $SHAPE
$GREATEST    SHARED(unsigned, slot_row, CHUNKS);
$ARRAYS
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int head = blockIdx.y, kv_head = head / GROUP, block = blockIdx.z, thread = threadIdx.x;
    const int lane = thread % 32, warp = thread / 32, across = lane % 8, down = lane / 8;
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
";

const GROUPS: &str = r"
    for (int group = blockIdx.x; group * CHUNKS < chunks; group += gridDim.x) {
        // The list is ascending: where a group's first chunk lies beyond the limit, so does every later one.
        if ($START(group * CHUNKS) > limit) break;
$SCORES
        for (int key = 0; key < KEYS; ++key) {
            sync_block();  // the keys before have been read
            if (thread < CHUNKS) {
                const int chunk = group * CHUNKS + thread;
                const int first_token = chunk < chunks ? $START(chunk) : limit + 1;
                // A chunk that may not be seen reads what is there and ignores the product.
                const bool scored = first_token <= limit;
$SLOT
            }
            sync_block();
";

const OWN_SCORES: &str = r"
        float* const own_scores =
            row_scores + static_cast<unsigned long long>(block * QUERY_HEADS + head) * SCORE_ROWS * row_stride +
            group * CHUNKS + warp / ROW_WARPS * 32 + across;
";

const BOUND: &str = r"
            // The most that any vector between the bounds can give: element by element the larger of two products.
            for (int row = warp % ROW_WARPS * 16; row < TILE_ROWS; row += ROW_WARPS * 16) {
                float sum[4][4] = {};
                for (int element = 0; element < HALF; element += 4) {
                    Quad<float> query_x[4], query_y[4];
                    for (int i = 0; i < 4; ++i) {
                        query_x[i] = load_quad(&queries[(row + down + 4 * i) * STRIDE + element]);
                        query_y[i] = load_quad(&queries[(row + down + 4 * i) * STRIDE + element + HALF]);
                    }
                    for (int j = 0; j < 4; ++j) {
                        const int slot = warp / ROW_WARPS * 32 + across + 8 * j, at = slot * STRIDE + element;
                        const Quad<float> least_x = load_quad(&slots[at]), least_y = load_quad(&slots[at + HALF]);
                        const Quad<float> greatest_x = load_quad(&greatest_slots[at]);
                        const Quad<float> greatest_y = load_quad(&greatest_slots[at + HALF]);
                        for (int i = 0; i < 4; ++i)
                            for (int e = 0; e < 4; ++e) {
                                float x = query_x[i].at[e], y = query_y[i].at[e];
$TURN
                                sum[i][j] += max(x * least_x.at[e], x * greatest_x.at[e]) +
                                             max(y * least_y.at[e], y * greatest_y.at[e]);
                            }
                    }
                }
                for (int i = 0; i < 4; ++i)
                    for (int j = 0; j < 4; ++j)
$REST
            }
";

const TURN_BACK: &str = r"
                                // Bounds cannot be turned: the query comes back by the chunk's position.
                                const float2 angle = rope_table[slot_position[slot] * HALF + element + e];
                                rotate(x, y, make_float2(angle.x, -angle.y));
";

const REDUCE: &str = r"
        for (int j = 0; j < 4; ++j) {
            $ONE
            $OTHER
            if (down == 0) largest[warp % ROW_WARPS * CHUNKS + warp / ROW_WARPS * 32 + across + 8 * j] = product[j];
        }
        sync_block();
        const int chunk = group * CHUNKS + thread;
        if (thread < CHUNKS && chunk < chunks && $START(chunk) <= limit) {
            float score = $NONE;
            for (int row_warp = 0; row_warp < ROW_WARPS; ++row_warp) $FOLDED
$MEAN
            atomic_max(&scores[$ROW + chunk], ordered(max(score, NEVER)));
        }
    }
}
";
