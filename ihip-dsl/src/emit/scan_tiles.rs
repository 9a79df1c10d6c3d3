//! Prefill on tensor cores: the rows of a head are the rows of a product, the probes of eight chunks its columns.
//!
//! A warp takes 16 chunks of one head and keeps its descents in registers. Lanes load their parts of the probes straight
//! into the registers that the product takes them from; queries lie in shared memory in the order in which it takes them,
//! split into what the factors' type holds of them and the rest. Warps of the heads of a group stand side by side, so that
//! the probes they share come from the nearest cache.

use super::cached;
use super::factor;
use super::functions::{self, ORDERED, ROTATE, Shape};
use super::scan::{chunks_here, heads_of, probe_texts, ranking_here};
use super::scoring::{self, BLOCK_SCORES, Output, Source, scan_constants, scoring_words, stem};
use super::tune::Tune;
use super::writer::Writer;
use super::{Buffer, Family, Kernel};
use crate::tuning::{ScanPrefill, Tuning};
use crate::{ChunkScore, Descent, Halving, PrunedLayer, QueryReduction, Ranking, ScanRope, StagePlan};

/// Two products beside each other take the same queries. More blocks of threads would load the same queries more often.
const DEFAULT: ScanPrefill = ScanPrefill { warps: 8, chunks: 16, blocks: 1024 };
/// Rows of a product.
const TILE_ROWS: usize = 16;
/// Shared memory for the queries of several heads, in bytes; two blocks of threads fit a multiprocessor.
const SHARED: usize = 64 * 1024;
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
    /// The kernel for a stage, where heads descend on their own and queries fit into shared memory.
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize, halving: Halving) -> Option<Self> {
        let scan = Self { shape, layer: scan_constants(layer, stage), stage, halving, tuning: DEFAULT };
        let rope = matches!(scan.plan().rope, ScanRope::Relative | ScanRope::Infllm | ScanRope::None);
        let fits = shape.kv().factor().is_some() && scan.head_bytes() <= SHARED && scan.pages() <= MOST_PAGES;
        (rope && fits && halving.descent == Descent::Each && !scoring::soft(scan.plan())).then_some(scan)
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(crate) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        let blocks = rows.div_ceil(self.plan().query_block);
        let heads = self.shape.query_heads() / self.heads();
        let ScanPrefill { warps, chunks: at_once, blocks: most } = self.tuning;
        let groups = chunks.div_ceil(at_once * warps / self.heads()).clamp(1, most.div_ceil(blocks * heads));
        [groups as u32, heads as u32, blocks as u32]
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        scoring::operands(self.shape, &self.layer, self.stage, Source::Keys, Output::Scores, parents)
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    /// Copies of the queries: one for left probes and one for right ones where their positions differ.
    fn copies(&self) -> usize {
        if self.plan().rope == ScanRope::Relative { 2 } else { 1 }
    }

    /// Products that the rows of a head take.
    fn tiles(&self) -> usize {
        self.plan().rows().div_ceil(TILE_ROWS)
    }

    /// Bytes of a head's queries.
    fn head_bytes(&self) -> usize {
        self.copies() * 2 * self.tiles() * TILE_ROWS * self.shape.head_dim() * 2
    }

    /// Heads of a group that a block of threads takes.
    fn heads(&self) -> usize {
        let fits = |heads: &usize| {
            self.shape.group().is_multiple_of(*heads)
                && self.tuning.warps.is_multiple_of(*heads)
                && heads * self.head_bytes() <= SHARED
        };
        [8, 4, 2].into_iter().find(fits).unwrap_or(1)
    }

    /// Pages that a chunk lies in at most.
    fn pages(&self) -> usize {
        (self.plan().chunk - 1) / self.shape.geometry.page as usize + 2
    }

    fn mean(&self) -> bool {
        self.plan().scoring.query_reduction == QueryReduction::Mean
    }

    fn heading(&self) -> String {
        let plan = self.plan();
        let (product, row) =
            if self.mean() { ("mean", "all averaged queries") } else { ("largest", "any averaged query") };
        let probe = match self.halving.chunk_score {
            ChunkScore::RunningMax => "any probe",
            ChunkScore::Last => "the last probe",
        };
        format!(
            "Prefill, stage {}: scores chunks of {} tokens for blocks of {} queries by {} halvings.\n\
             A warp takes one head of one query block and {} chunks at a time; a chunk's score is the {product}\n\
             product of {row} with {probe}, over {}.",
            self.stage,
            plan.chunk,
            plan.query_block,
            plan.halvings,
            self.tuning.chunks,
            heads_of(self.layer.ranking),
        )
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (stage, ScanPrefill { warps, chunks, .. }) = (self.plan(), self.tuning);
        let mut writer = Writer::new(&self.heading(), &format!("{pipeline}, stage {}", self.stage));
        self.shape.constants(&mut writer);
        functions::chunk_list_constants(&mut writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("HALVINGS", stage.halvings, "two probes each")
            .constant("QUERY_STRIDE", stage.query_stride, "neighbouring queries averaged into a row")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query")
            .float("NEVER", -32000.0, "score of a chunk without a probe")
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", 32 * warps, "threads of a block")
            .constant("WARPS", warps, "warps of a block")
            .constant("HEADS", self.heads(), "heads of a block of threads, each with warps of its own")
            .constant("CHUNKS", chunks, "chunks that a warp descends at a time")
            .constant("SETS", chunks / 8, "eights of them, each the columns of two products")
            .constant(
                "COPIES",
                self.copies(),
                "copies of the queries: for left probes, and for right ones where they differ",
            )
            .constant("TILES", self.tiles(), "sixteens of rows of a head")
            .constant("STEPS", self.shape.head_dim() / 16, "products along a row")
            .constant("STEP", 128, "words of a left factor: four for each lane")
            .constant(
                "PART",
                self.tiles() * self.shape.head_dim() / 16 * 128,
                "words of a head's queries, or of their rest",
            )
            .constant("PAGES", self.pages(), "pages that a chunk lies in at most");
        functions::ranking_constant(&mut writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
        factor::define(&mut writer, self.shape);
        factor::probes(&mut writer, self.shape);
        writer.text(FOUR).text(ORDERED);
        if stage.rope != ScanRope::None {
            writer.text(ROTATE);
        }
        functions::chunk_list(&mut writer, self.stage);
        let rope = if stage.rope == ScanRope::None { "" } else { " const float2* __restrict__ rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{rope}\n   {parents} unsigned* scores, int score_stride) {{"
        ));
        writer.more(PLACE);
        ranking_here(&mut writer, self.layer.ranking, true);
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        let turn = match stage.rope {
            ScanRope::Relative => TURN_TWICE,
            ScanRope::None => "",
            _ => TURN,
        };
        writer.text(&QUERIES.replace("$TURN\n", turn.trim_start_matches('\n')));
        writer.text(&self.descend());
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(self.operands(|stage| Buffer::Lists { stage })),
            threads: (32 * warps) as u32,
            shared_bytes: (self.heads() * self.head_bytes()) as u32,
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
        let (zero, reduce, scale) = if self.mean() {
            (
                "0.0f",
                SUM,
                "            for (int set = 0; set < SETS; ++set)\n                for (int side = 0; side < 2; ++side) score[set][side] /= static_cast<float>(live_rows);\n",
            )
        } else {
            ("LOWEST", LARGEST, "")
        };
        let join = |one: &str, other: &str| {
            if self.mean() { format!("{one} + {other}") } else { format!("max({one}, {other})") }
        };
        let products = if cached::scaled(self.shape) { SCALED_PRODUCTS } else { PRODUCTS };
        DESCEND
            .replace("$PRODUCTS\n", products.trim_start_matches('\n'))
            .replace("$REDUCE\n", reduce.trim_start_matches('\n'))
            .replace("$SCALE\n", scale)
            .replace("$ZERO", zero)
            .replace("$JOIN_TILE", &join("score[set][side]", "mine"))
            .replace("$JOIN_8", &join("score[set][side]", "shuffle_xor(score[set][side], 8)"))
            .replace("$JOIN_16", &join("score[set][side]", "shuffle_xor(score[set][side], 16)"))
            .replace("$START(", start)
            .replace("$CLAMP", clamp)
            .replace("$TOKEN", token)
            .replace("$LEFT", &left)
            .replace("$RIGHT", &right)
            .replace("$SENTENCE", sentence)
            .replace("$BEST", best)
            .replace("$ROW", row)
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
        choices.into_iter().map(Tuning::ScanPrefill).collect()
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::ScanPrefill(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

const FOUR: &str = r"
// A lane's part of a left factor.
struct alignas(16) Four {
    unsigned at[4];
};
";

const PLACE: &str = r"
    SHARED_DYNAMIC(unsigned, factors);  // [HEADS][COPIES][2][TILES][STEPS][32][4]: queries, and their rest
    SHARED(unsigned, warp_pages, WARPS * CHUNKS * PAGES);
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int block = blockIdx.z, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int first_head = blockIdx.y * HEADS, kv_head = first_head / GROUP, head = first_head + warp % HEADS;
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW, last = start + rows - 1;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
";

const QUERIES: &str = r"
    // A row is the mean of QUERY_STRIDE neighbours; those beyond the call are left out of it. Elements come in the order
    // in which lanes load them from a key, to which a product is indifferent.
    for (int item = thread; item < HEADS * TILES * 16 * HALF / 2; item += THREADS) {
        const int element = item % (HALF / 2) * 2, row = item / (HALF / 2) % (TILES * 16);
        const int own_head = item / (HALF / 2 * TILES * 16);
        const int neighbours = min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE);
        float x[2] = {}, y[2] = {};
        for (int neighbour = 0; neighbour < neighbours; ++neighbour) {
            const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
            const Activation* const query = &qkv[at * QKV_ROW + (first_head + own_head) * HEAD_DIM + element];
            for (int e = 0; e < 2; ++e) {
                x[e] += to_float(query[e]);
                y[e] += to_float(query[HALF + e]);
            }
        }
        const float scale = neighbours > 0 ? QUERY_SCALE / static_cast<float>(neighbours) : 0.0f;
        for (int copy = 0; copy < COPIES; ++copy)
            for (int half = 0; half < 2; ++half) {
                float whole[2], rest[2];
                for (int e = 0; e < 2; ++e) {
                    float turned_x = x[e] * scale, turned_y = y[e] * scale;
$TURN
                    const float turned = half == 0 ? turned_x : turned_y;
                    whole[e] = to_float(from_float<Factor>(turned));
                    rest[e] = turned - whole[e];
                }
                const int at = element + half * HALF, load = at / EACH, pair = load / 4 * (EACH / 2) + at % EACH / 2;
                const int to = ((own_head * COPIES + copy) * 2 * TILES + row / 16) * STEPS * STEP + pair / 2 * STEP +
                               (row % 8 * 4 + load % 4) * 4 + pair % 2 * 2 + row % 16 / 8;
                factors[to] = pack<Factor>(whole[0], whole[1]);
                factors[to + PART] = pack<Factor>(rest[0], rest[1]);
            }
    }
    sync_block();
";

const TURN_TWICE: &str = r"
                    // Left probes are at position 0, right ones at 1, queries at SCAN_WINDOW + 1: what counts is the distance.
                    rotate(turned_x, turned_y, rope_table[(SCAN_WINDOW + 1 - copy) * HALF + element + e]);
";

const TURN: &str = r"
                    rotate(turned_x, turned_y, rope_table[SCAN_WINDOW * HALF + element + e]);
";

const DESCEND: &str = r"
    const int across = lane % 4, down = lane / 4;
    const unsigned* const own_factors = factors + warp % HEADS * COPIES * 2 * PART + lane * 4;
    unsigned* const pages = warp_pages + warp * CHUNKS * PAGES;
    const int first_chunk = (blockIdx.x * (WARPS / HEADS) + warp / HEADS) * CHUNKS;
    for (int base = first_chunk; base < chunks; base += gridDim.x * (WARPS / HEADS) * CHUNKS) {
        // The list is ascending: where a warp's first chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
        for (int item = lane; item < CHUNKS * PAGES; item += 32) {
            const int chunk = min(base + item / PAGES, chunks - 1);
            pages[item] = page_table[min($START(chunk) / PAGE + item % PAGES, last / PAGE)];
        }
        sync_warp();
        // A lane loads parts of the probes of chunk `down` of each set.
        int left[SETS], right[SETS], first_page[SETS];
        float best[SETS];
        for (int set = 0; set < SETS; ++set) {
            const int chunk = base + set * 8 + down;
            left[set] = $START(min(chunk, chunks - 1));
            right[set] = chunk < chunks ? $CLAMP : left[set];
            first_page[set] = left[set] / PAGE;
            best[set] = LOWEST;
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The $TOKEN token of each half stands for it. What is loaded for an inactive chunk is ignored.
            Probe probe[SETS][2];
#pragma unroll
            for (int set = 0; set < SETS; ++set) {
                const bool active = left[set] < right[set] && left[set] <= limit;
                const int middle = (left[set] + right[set]) / 2;
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int token = side == 0 ? $LEFT : $RIGHT;
                    const unsigned page = pages[(set * 8 + down) * PAGES + (active ? token / PAGE - first_page[set] : 0)];
                    const unsigned long long row = (page * KV_HEADS + kv_head) * PAGE + (active ? token % PAGE : 0);
                    probe[set][side] = load_probe(keys, row, across);
                }
            }
            float score[SETS][2];
            for (int set = 0; set < SETS; ++set) score[set][0] = score[set][1] = $ZERO;
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    float product[SETS][4] = {};
$PRODUCTS
                    // A lane has the columns 2 * across and 2 * across + 1 of two rows, and goes on with one of them.
                    for (int set = 0; set < SETS; ++set) {
$REDUCE
                        score[set][side] = $JOIN_TILE;
                    }
                }
            for (int set = 0; set < SETS; ++set)
                for (int side = 0; side < 2; ++side) {
                    score[set][side] = $JOIN_8;
                    score[set][side] = $JOIN_16;
                    // Column `down` is in the lanes across it.
                    score[set][side] = shuffle(score[set][side], down % 2 * 4 + down / 2);
                }
$SCALE
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
                atomic_max(&scores[$ROW + base + set * 8 + down], ordered(max(best[set], NEVER)));
        sync_warp();  // the pages have been read
    }
}
";

const PRODUCTS: &str = r"
                    for (int part = 0; part < 2; ++part)
                        for (int i = 0; i < STEPS; ++i) {
                            const int copy = side * (COPIES - 1);
                            const Four factor = *reinterpret_cast<const Four*>(
                                &own_factors[(copy * 2 + part) * PART + (tile * STEPS + i) * STEP]);
                            for (int set = 0; set < SETS; ++set) {
                                const Probe& key = probe[set][side];
                                mma_16x8x16<Factor>(product[set], factor.at, {key.at[2 * i], key.at[2 * i + 1]});
                            }
                        }
";

const SCALED_PRODUCTS: &str = r"
                    for (int scale = 0; scale < SCALES; ++scale) {
                        float sum[SETS][4] = {};
                        for (int i = scale * (STEPS / SCALES); i < (scale + 1) * (STEPS / SCALES); ++i)
                            for (int part = 0; part < 2; ++part) {
                                const int copy = side * (COPIES - 1);
                                const Four factor = *reinterpret_cast<const Four*>(
                                    &own_factors[(copy * 2 + part) * PART + (tile * STEPS + i) * STEP]);
                                for (int set = 0; set < SETS; ++set) {
                                    const Probe& key = probe[set][side];
                                    mma_16x8x16<Factor>(sum[set], factor.at, {key.at[2 * i], key.at[2 * i + 1]});
                                }
                            }
                        // The lanes of a column have its scales.
                        for (int set = 0; set < SETS; ++set)
                            for (int e = 0; e < 2; ++e) {
                                const float its = shuffle(probe[set][side].scale, across * 8 + e * 4 + scale);
                                for (int r = 0; r < 4; r += 2) product[set][r + e] += sum[set][r + e] * its;
                            }
                    }
";

const LARGEST: &str = r"
                        const bool one = tile * 16 + down < live_rows, other = tile * 16 + down + 8 < live_rows;
                        const float even = max(one ? product[set][0] : LOWEST, other ? product[set][2] : LOWEST);
                        const float odd = max(one ? product[set][1] : LOWEST, other ? product[set][3] : LOWEST);
                        const float mine = max(down % 2 == 0 ? even : odd, shuffle_xor(down % 2 == 0 ? odd : even, 4));
";

const SUM: &str = r"
                        // Rows beyond the last are zero.
                        const float even = product[set][0] + product[set][2], odd = product[set][1] + product[set][3];
                        const float mine = (down % 2 == 0 ? even : odd) + shuffle_xor(down % 2 == 0 ? odd : even, 4);
";
