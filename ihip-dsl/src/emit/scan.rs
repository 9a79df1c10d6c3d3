//! Prefill: every query block descends every chunk that its first query may see (paper Algorithm 1).
//!
//! A block of threads takes one query head of one query block. It keeps the averaged queries in shared memory, gathers
//! the two probes of each chunk of a group beside them, and multiplies both as a register-tiled product.

use super::cached;
use super::extend;
use super::functions::{self, ORDERED, QUADS, ROTATE, Shape};
use super::rows::{Heads, Product, Rotation, Rows, warps};
use super::scoring::{self, BLOCK_SCORES, Output, Source, scan_constants, scoring_words, stem};
use super::tile::Tile;
use super::writer::Writer;
use super::{Buffer, Family, Kernel};
use crate::{ChunkScore, Descent, Halving, Probe, PrunedLayer, QueryReduction, Ranking, ScanRope, StagePlan};

/// Blocks of threads of a launch, unless there are fewer groups of chunks: several rounds on a large chip. Fewer would
/// leave part of it idle; more would load the same queries more often.
pub(super) const BLOCKS: usize = 4096;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scan {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
    halving: Halving,
}

impl Scan {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize, halving: Halving) -> Self {
        Self { shape, layer: scan_constants(layer, stage), stage, halving }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        stem(&format!("scan{}", scoring_words(self.plan())), pipeline, self.shape, &self.layer, self.stage)
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(crate) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        let blocks = rows.div_ceil(self.plan().query_block);
        let descents = scoring::descents(self.shape, &self.layer, self.stage);
        let wanted = BLOCKS.div_ceil(blocks * descents);
        let groups = chunks.div_ceil(self.chunks_of_group()).clamp(1, wanted);
        [groups as u32, descents as u32, blocks as u32]
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        let output = if self.soft() { Output::Paths } else { Output::Scores };
        scoring::operands(self.shape, &self.layer, self.stage, Source::Keys, output, parents)
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    /// Whether rows keep scores of their own: then this kernel only says which way the descents went.
    fn soft(&self) -> bool {
        scoring::soft(self.plan())
    }

    /// Whether all heads of a group decide where a chunk is halved, and one of them scores it.
    fn own_head(&self) -> bool {
        self.halving.descent == Descent::KvGroup && self.layer.ranking == Ranking::Each && !self.soft()
    }

    fn rows(&self) -> Rows {
        Rows {
            rotation: self.rotation(),
            heads: match self.halving.descent {
                Descent::Each => Heads::One,
                Descent::KvGroup => Heads::Group(self.shape.group()),
            },
            mean: self.plan().scoring.query_reduction == QueryReduction::Mean,
            of_head: self.plan().rows(),
            warps: warps(self.shape),
            least_warps: 1,
        }
    }

    fn probes(&self) -> usize {
        self.rows().columns()
    }

    fn chunks_of_group(&self) -> usize {
        self.probes() / 2
    }

    fn shared_floats(&self, copies: usize) -> usize {
        copies * self.rows().copy_floats(self.shape) + self.probes() * (self.shape.head_dim() + 4)
    }

    fn rotation(&self) -> Rotation {
        match self.plan().rope {
            ScanRope::None => Rotation::None,
            ScanRope::Infllm => Rotation::Queries("SCAN_WINDOW"),
            ScanRope::DynamicExtend | ScanRope::SelfExtend => Rotation::Extended,
            ScanRope::ChunkIndexed => Rotation::Chunks,
            ScanRope::Relative => Rotation::QueriesTwice,
        }
    }

    fn heading(&self) -> String {
        let plan = self.plan();
        let heads = match self.halving.descent {
            Descent::Each => "one head",
            Descent::KvGroup => "the heads of a group",
        };
        let end = if self.soft() {
            "it writes which way each chunk\'s descent went.".to_owned()
        } else {
            let (product, row) = match self.plan().scoring.query_reduction {
                QueryReduction::Max => ("largest", "any averaged query"),
                QueryReduction::Mean => ("mean", "all averaged queries"),
            };
            let probe = match self.halving.chunk_score {
                ChunkScore::RunningMax => "any probe",
                ChunkScore::Last => "the last probe",
            };
            format!(
                "a chunk's score is the {product}\nproduct of {row} with {probe}, over {}.",
                heads_of(self.layer.ranking)
            )
        };
        format!(
            "Prefill, stage {}: scores chunks of {} tokens for blocks of {} queries by {} halvings.\n\
             A block of threads takes {heads} of one query block and groups of {} chunks; {end}",
            self.stage,
            plan.chunk,
            plan.query_block,
            plan.halvings,
            self.chunks_of_group(),
        )
    }

    fn constants(&self, writer: &mut Writer) {
        let (stage, rows) = (self.plan(), self.rows());
        self.shape.constants(writer);
        functions::chunk_list_constants(writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("HALVINGS", stage.halvings, "two probes each")
            .constant("QUERY_STRIDE", stage.query_stride, "neighbouring queries averaged into a row");
        rows.constants(writer);
        writer
            .constant("ROWS", rows.padded(), "rows of a block, padded for the product")
            .constant("TILE_ROWS", rows.tile_rows(), "of which this many are in shared memory at a time")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query");
        if self.soft() {
            let descents = scoring::descents(self.shape, &self.layer, self.stage);
            writer.constant("DESCENTS", descents, "paths into a chunk: one a head or a group of heads").constant(
                "PATH",
                scoring::path_length(stage),
                "probes of a path that count",
            );
        } else {
            writer.float("NEVER", -32000.0, "score of a chunk without a probe");
        }
        writer
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", rows.threads(), "threads of a block")
            .constant("ROW_WARPS", rows.row_warps(), "warps side by side along the rows")
            .constant("CHUNKS", self.chunks_of_group(), "chunks that descend together")
            .constant("PROBES", self.probes(), "two a chunk: the left ones of 4 chunks, their right ones, and so on")
            .constant("STRIDE", self.shape.head_dim() + 4, "floats between rows in shared memory: no bank conflicts");
        if self.rotation() == Rotation::QueriesTwice {
            writer.constant(
                "COPY",
                rows.copy_floats(self.shape),
                "floats between queries turned for left probes and for right ones, 16 banks apart",
            );
        }
        if let Some(extension) = extend::of_scan(self.plan().rope) {
            extend::constants(writer, self.shape, extension);
        }
        functions::ranking_constant(writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (rows, rotation) = (self.rows(), self.rotation());
        let copies = if rotation == Rotation::QueriesTwice { 2 } else { 1 };
        let mut writer = Writer::new(&self.heading(), &format!("{pipeline}, stage {}", self.stage));
        self.constants(&mut writer);
        writer.text(QUADS);
        cached::rows(&mut writer, self.shape);
        cached::quads(&mut writer, self.shape);
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
        writer.text(LEFT_SLOT);
        let rope = if rotation == Rotation::None { "" } else { " const float2* __restrict__ rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        let output = if self.soft() { "int* paths, int row_stride" } else { "unsigned* scores, int score_stride" };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{rope}\n   {parents} {output}) {{"
        ));
        self.place(&mut writer, copies);
        if rows.whole() {
            writer.text(&rows.load());
        }
        writer.text(&self.groups());
        let probes = Tile {
            from: "keys",
            to: "probes",
            rows: ("PROBES", self.probes()),
            threads: rows.threads(),
            shape: self.shape,
            loads: 16,
            indent: 12,
        };
        writer.more(&if rotation.turns_keys() { probes.load_turned() } else { probes.load_plain() });
        writer.more("            sync_block();");
        let copy = if copies == 2 { "&queries[across / 4 * COPY]" } else { "queries" };
        let own = if self.own_head() { "            float own[4] = {LOWEST, LOWEST, LOWEST, LOWEST};\n" } else { "" };
        writer.more(&PLACE_IN_PRODUCT.replace("$COPY", copy).replace("$OWN", own));
        let product = rows.product(if self.own_head() { Product::LargestAndOwn } else { Product::Largest });
        if rows.whole() {
            writer.more(&product);
        } else {
            writer.more("            // More rows than fit into shared memory: they take turns.");
            writer.more("            for (int tile = 0; tile < ROWS; tile += TILE_ROWS) {\n            sync_block();");
            writer.more(&rows.load());
            writer.more("            sync_block();");
            writer.more(&product);
            writer.more("            }");
        }
        writer.more(&self.descend());
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(self.operands(|stage| Buffer::Lists { stage })),
            threads: rows.threads() as u32,
            shared_bytes: (self.shared_floats(copies) * 4) as u32,
        }
    }

    /// Where this block of threads works.
    fn place(&self, writer: &mut Writer, copies: usize) {
        let (shape, size) =
            if copies == 2 { ("[2][COPY]", "2 * COPY") } else { ("[TILE_ROWS][STRIDE]", "TILE_ROWS * STRIDE") };
        let best = if self.soft() { "" } else { "    SHARED(float, best, CHUNKS);\n" };
        let positions = if self.rotation().turns_keys() { "    SHARED(int, slot_position, PROBES);\n" } else { "" };
        let own = if self.own_head() { "    SHARED(float, own_largest, ROW_WARPS * PROBES);\n" } else { "" };
        let alone = scoring::descents(self.shape, &self.layer, self.stage) == self.shape.query_heads();
        let head = if alone { "head = blockIdx.y, kv_head = head / GROUP" } else { "kv_head = blockIdx.y" };
        let place = PLACE.replace("$SHAPE", shape).replace("$SIZE", size).replace("$BEST", best);
        writer.more(&place.replace("$POSITIONS", positions).replace("$OWN", own).replace("$HEAD", head));
        if self.rotation() == Rotation::Extended {
            writer.more(extend::BLOCK);
        }
        ranking_here(writer, self.layer.ranking, !self.soft());
        if self.soft() {
            writer.more(OWN_PATHS);
        }
        writer.more(&chunks_here(self.stage, self.layer.ranking));
    }

    /// Opens the loops over groups of chunks and their halvings, and finds each slot's probe.
    fn groups(&self) -> String {
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let clamp = if self.stage == 0 {
            "min(left[thread] + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)"
        } else {
            "left[thread] + CHUNK"
        };
        let position = if self.rotation() == Rotation::Chunks { POSITION } else { "" };
        let best = if self.soft() { "" } else { "            best[thread] = LOWEST;\n" };
        let (token, left, right) = probe_texts(self.halving.probe, "[thread]");
        let moved = if self.rotation() == Rotation::Extended {
            let place = |slot, probe| {
                format!(
                    "                slot_position[{slot}] = {};\n",
                    extend::block_position(&format!("active ? {probe} : 0"))
                )
            };
            place("slot", "$LEFT") + &place("slot + 4", "$RIGHT")
        } else {
            String::new()
        };
        GROUPS
            .replace("$MOVED\n", &moved)
            .replace("$POSITION", position)
            .replace("$BEST", best)
            .replace("$START(", start)
            .replace("$CLAMP", clamp)
            .replace("$TOKEN", token)
            .replace("$LEFT", &left)
            .replace("$RIGHT", &right)
    }

    /// Takes a half of each chunk, and writes what came of it.
    fn descend(&self) -> String {
        let decided = if self.own_head() { DECIDED_BY_GROUP } else { DECIDED };
        let (sentence, keep) = self.keep();
        let write = if self.soft() {
            "    }\n}\n".to_owned()
        } else {
            let row = if self.layer.ranking == Ranking::All { BLOCK_SCORES } else { "score_row" };
            WRITE.replace("$SCORES", row)
        };
        let (own, other) = match (self.own_head(), self.soft(), self.halving.chunk_score) {
            (true, _, _) => (OWN_LARGEST, ""),
            (false, true, ChunkScore::RunningMax) => ("", NO_PATH),
            (false, _, _) => ("", ""),
        };
        DESCEND
            .replace("$OWN\n", own.trim_start_matches('\n'))
            .replace("$OTHER", other.trim_matches('\n'))
            .replace("$SENTENCE", sentence)
            .replace("$DECIDED\n", decided.trim_start_matches('\n'))
            .replace("$KEEP\n", &keep)
            .replace("$WRITE\n", write.trim_start_matches('\n'))
    }

    /// What a taken half does to the score of its chunk.
    fn keep(&self) -> (&'static str, String) {
        if self.soft() {
            // Bounds of the half taken: its token is what stood for it.
            let token = match self.halving.probe {
                Probe::Middle => "(left[thread] + right[thread]) / 2",
                Probe::First => "left[thread]",
            };
            let (sentence, text) = match self.halving.chunk_score {
                ChunkScore::RunningMax => ("Rows will be scored by every half taken.", KEEP_PATH),
                ChunkScore::Last => ("Rows will be scored by the half taken last.", KEEP_END),
            };
            return (sentence, text.trim_start_matches('\n').replace("$TAKEN", token));
        }
        let taken = if self.own_head() {
            "left_score > right_score ? own_left : own_right"
        } else {
            "max(left_score, right_score)"
        };
        match self.halving.chunk_score {
            ChunkScore::RunningMax => (
                "The score is the best probe of all halvings, not the one the descent ends at.",
                format!("                best[thread] = max(best[thread], {taken});\n"),
            ),
            ChunkScore::Last => {
                ("The score is that of the half taken last.", format!("                best[thread] = {taken};\n"))
            }
        }
    }
}

/// The tokens that stand for the halves of a chunk whose bounds are `left` and `right`, each followed by `index`.
pub(super) fn probe_texts(probe: Probe, index: &str) -> (&'static str, String, String) {
    match probe {
        Probe::Middle => ("middle", format!("(left{index} + middle) / 2"), format!("(middle + right{index}) / 2")),
        Probe::First => ("first", format!("left{index}"), "middle".to_owned()),
    }
}

/// Defines `ranking`, where there are several, and `score_row` where scores are written.
pub(super) fn ranking_here(writer: &mut Writer, ranking: Ranking, scores: bool) {
    let head = match ranking {
        Ranking::All => return,
        Ranking::KvGroup => "kv_head",
        Ranking::Each => "head",
    };
    writer.more(&format!("    const int ranking = {head};"));
    if scores {
        writer.more(SCORE_ROW);
    }
}

/// Defines `chunks`, and `kept` from the second stage on, for the query block `block` and its `ranking`.
pub(super) fn chunks_here(stage: usize, ranking: Ranking) -> String {
    if stage == 0 {
        return "    const int chunks = chunk_count(step[STEP_T_MAX]);".to_owned();
    }
    let row = match ranking {
        Ranking::All => "parent_block(block, rows)",
        Ranking::KvGroup | Ranking::Each => "(parent_block(block, rows) * RANKINGS + ranking)",
    };
    format!("    const int* const kept = parents + {row} * (KEPT + 1);\n    const int chunks = chunk_count(kept);")
}

/// The heads that a chunk's score is the maximum of.
pub(super) const fn heads_of(ranking: Ranking) -> &'static str {
    match ranking {
        Ranking::All => "all heads",
        Ranking::KvGroup => "the heads of a group",
        Ranking::Each => "its head alone",
    }
}

const LEFT_SLOT: &str = r"
// The slot of a chunk's left probe; its right one is 4 further.
inline int left_slot(int chunk) { return chunk / 4 * 8 + chunk % 4; }
";

const PLACE: &str = r"
    SHARED_DYNAMIC(float, queries);           // $SHAPE
    float* const probes = queries + $SIZE;  // [PROBES][STRIDE]
    SHARED(int, left, CHUNKS);
    SHARED(int, right, CHUNKS);
$BEST    SHARED(unsigned, slot_row, PROBES);
$POSITIONS    SHARED(float, largest, ROW_WARPS * PROBES);
$OWN
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int $HEAD, block = blockIdx.z, thread = threadIdx.x;
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
";

const POSITION: &str = r"            // A key's position is the index of its chunk in the list.
            slot_position[left_slot(thread)] = slot_position[left_slot(thread) + 4] = min(chunk, chunks);
";

const SCORE_ROW: &str = r"
    const unsigned long long score_row = static_cast<unsigned long long>(block * RANKINGS + ranking) * score_stride;
";

const GROUPS: &str = r"
    for (int group = blockIdx.x; group * CHUNKS < chunks; group += gridDim.x) {
        // The list is ascending: where a group's first chunk lies beyond the limit, so does every later one.
        if ($START(group * CHUNKS) > limit) break;
        if (thread < CHUNKS) {
            const int chunk = group * CHUNKS + thread;
            left[thread] = chunk < chunks ? $START(chunk) : 0;
            right[thread] = chunk < chunks ? $CLAMP : 0;
$BEST$POSITION        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it. An inactive chunk probes token 0 and ignores the product.
            if (thread < CHUNKS) {
                const bool active = left[thread] < right[thread] && left[thread] <= limit;
                const int middle = (left[thread] + right[thread]) / 2;
                const int slot = left_slot(thread);
                slot_row[slot] = cache_row(page_table, active ? $LEFT : 0, kv_head);
                slot_row[slot + 4] = cache_row(page_table, active ? $RIGHT : 0, kv_head);
$MOVED
            }
            sync_block();
";

const PLACE_IN_PRODUCT: &str = r"
            const int lane = thread % 32, warp = thread / 32, across = lane % 8, down = lane / 8;
            const float* const own_queries = $COPY;
            const float* const warp_probes = &probes[warp / ROW_WARPS * 32 * STRIDE];
            float product[4] = {LOWEST, LOWEST, LOWEST, LOWEST};
$OWN";

const DESCEND: &str = r"
            for (int j = 0; j < 4; ++j) {
                product[j] = max(product[j], shuffle_xor(product[j], 8));
                product[j] = max(product[j], shuffle_xor(product[j], 16));
                if (down == 0) largest[warp % ROW_WARPS * PROBES + warp / ROW_WARPS * 32 + across + 8 * j] = product[j];
$OWN
            }
            sync_block();
            // A tie goes right. $SENTENCE
            if (thread < CHUNKS && left[thread] < right[thread] && left[thread] <= limit) {
                const int slot = left_slot(thread);
                float left_score = LOWEST, right_score = LOWEST;
$DECIDED
                const int middle = (left[thread] + right[thread]) / 2;
                if (left_score > right_score) {
                    right[thread] = middle;
                } else {
                    left[thread] = middle;
                }
$KEEP
            }$OTHER
        }
$WRITE
";

const DECIDED: &str = r"
                for (int row_warp = 0; row_warp < ROW_WARPS; ++row_warp) {
                    left_score = max(left_score, largest[row_warp * PROBES + slot]);
                    right_score = max(right_score, largest[row_warp * PROBES + slot + 4]);
                }
";

const OWN_LARGEST: &str = r"
                own[j] = max(own[j], shuffle_xor(own[j], 8));
                own[j] = max(own[j], shuffle_xor(own[j], 16));
                if (down == 0) own_largest[warp % ROW_WARPS * PROBES + warp / ROW_WARPS * 32 + across + 8 * j] = own[j];
";

const DECIDED_BY_GROUP: &str = r"
                float own_left = LOWEST, own_right = LOWEST;
                for (int row_warp = 0; row_warp < ROW_WARPS; ++row_warp) {
                    left_score = max(left_score, largest[row_warp * PROBES + slot]);
                    right_score = max(right_score, largest[row_warp * PROBES + slot + 4]);
                    own_left = max(own_left, own_largest[row_warp * PROBES + slot]);
                    own_right = max(own_right, own_largest[row_warp * PROBES + slot + 4]);
                }
";

const OWN_PATHS: &str = r"
    int* const own_paths = paths + static_cast<unsigned long long>(block * DESCENTS + blockIdx.y) * PATH * row_stride;
";

const KEEP_PATH: &str = r"
                // Twice the token that stands for the half, plus 1 for the right one.
                own_paths[static_cast<unsigned long long>(halving) * row_stride + group * CHUNKS + thread] =
                    2 * ($TAKEN) + (left_score > right_score ? 0 : 1);
";

const KEEP_END: &str = r"
                // Twice the token that stands for the half, plus 1 for the right one.
                own_paths[group * CHUNKS + thread] = 2 * ($TAKEN) + (left_score > right_score ? 0 : 1);
";

const NO_PATH: &str = r" else if (thread < CHUNKS && group * CHUNKS + thread < chunks) {
                own_paths[static_cast<unsigned long long>(halving) * row_stride + group * CHUNKS + thread] = -1;
            }";

const WRITE: &str = r"
        if (thread < CHUNKS && best[thread] > LOWEST)
            atomic_max(&scores[$SCORES + group * CHUNKS + thread], ordered(max(best[thread], NEVER)));
    }
}
";
