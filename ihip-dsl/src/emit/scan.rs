//! Prefill: every query block descends every chunk that its first query may see (paper Algorithm 1).
//!
//! A block of threads takes one query head of one query block. It keeps the averaged queries in shared memory, gathers
//! the two probes of each chunk of a group beside them, and multiplies both as a register-tiled product.

use super::functions::{self, CACHE_ROW, ORDERED, QUADS, ROTATE, Shape};
use super::launch::Element;
use super::tile::Tile;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::{PrunedLayer, Ranking, ScanRope};

const THREADS: usize = 128;
const WARPS: usize = THREADS / 32;
/// Rows and probes of a warp's product: 8 threads across, 4 down, 4 × 4 results each.
const WARP_ROWS: usize = 16;
const WARP_PROBES: usize = 32;
/// Blocks of threads of a launch, unless there are fewer groups of chunks: several rounds on a large chip. Fewer would
/// leave part of it idle; more would load the same queries more often.
const BLOCKS: usize = 4096;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scan {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
}

/// How queries and probes meet their rotary positions.
#[derive(Clone, Copy, PartialEq)]
enum Rotation {
    /// Not at all.
    None,
    /// One copy of the queries.
    Queries,
    /// A copy of the queries for left probes and one for right ones: probes stay as they are.
    QueriesTwice,
    /// Queries and probes, the probes by the index of their chunk.
    Chunks,
}

impl Scan {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Self {
        Self { shape, layer: scan_constants(layer, stage), stage }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        stem("scan", pipeline, self.shape, &self.layer, self.stage)
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(crate) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        let blocks = rows.div_ceil(self.layer.stages[self.stage].query_block);
        let wanted = BLOCKS.div_ceil(blocks * self.shape.query_heads());
        let groups = chunks.div_ceil(self.chunks_of_group()).clamp(1, wanted);
        [groups as u32, self.shape.geometry.query_heads, blocks as u32]
    }

    fn rows(&self) -> usize {
        self.layer.stages[self.stage].rows()
    }

    /// Warps side by side along the rows; the others take other probes.
    fn row_warps(&self) -> usize {
        self.rows().div_ceil(WARP_ROWS).next_power_of_two().min(WARPS)
    }

    fn padded_rows(&self) -> usize {
        self.rows().next_multiple_of(WARP_ROWS * self.row_warps())
    }

    /// Rows in shared memory at a time.
    fn tile_rows(&self) -> usize {
        self.padded_rows().min(WARP_ROWS * WARPS)
    }

    fn probes(&self) -> usize {
        WARP_PROBES * WARPS / self.row_warps()
    }

    fn chunks_of_group(&self) -> usize {
        self.probes() / 2
    }

    /// Floats from one copy of the queries to the next: a warp reads four rows of each at a time, from all banks.
    fn copy_floats(&self) -> usize {
        self.tile_rows() * (self.shape.head_dim() + 4) + 16
    }

    fn shared_floats(&self, copies: usize) -> usize {
        copies * self.copy_floats() + self.probes() * (self.shape.head_dim() + 4)
    }

    fn rotation(&self) -> Rotation {
        match self.layer.stages[self.stage].rope {
            ScanRope::None => Rotation::None,
            ScanRope::Infllm => Rotation::Queries,
            ScanRope::DynamicExtend | ScanRope::SelfExtend => unreachable!("no word of the language leads here yet"),
            ScanRope::ChunkIndexed => Rotation::Chunks,
            ScanRope::Relative => Rotation::QueriesTwice,
        }
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let stage = &self.layer.stages[self.stage];
        let rotation = self.rotation();
        let copies = if rotation == Rotation::QueriesTwice { 2 } else { 1 };
        let heading = format!(
            "Prefill, stage {}: scores chunks of {} tokens for blocks of {} queries by {} halvings.\n\
             A block of threads takes one head of one query block and groups of {} chunks; a chunk's score is the largest\n\
             product of any averaged query with any probe, over {}.",
            self.stage,
            stage.chunk,
            stage.query_block,
            stage.halvings,
            self.chunks_of_group(),
            heads_of(self.layer.ranking)
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, stage {}", self.stage));
        self.shape.constants(&mut writer);
        functions::chunk_list_constants(&mut writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("HALVINGS", stage.halvings, "two probes each")
            .constant("QUERY_STRIDE", stage.query_stride, "neighbouring queries averaged into a row")
            .constant("ROWS", self.padded_rows(), "rows of a block, padded for the product")
            .constant("TILE_ROWS", self.tile_rows(), "of which this many are in shared memory at a time")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query")
            .float("NEVER", -32000.0, "score of a chunk without a probe")
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", THREADS, "threads of a block")
            .constant("ROW_WARPS", self.row_warps(), "warps side by side along the rows")
            .constant("CHUNKS", self.chunks_of_group(), "chunks that descend together")
            .constant("PROBES", self.probes(), "two a chunk: the left ones of 4 chunks, their right ones, and so on")
            .constant("STRIDE", self.shape.head_dim() + 4, "floats between rows in shared memory: no bank conflicts");
        if rotation == Rotation::QueriesTwice {
            writer.constant(
                "COPY",
                self.copy_floats(),
                "floats between queries turned for left probes and for right ones, 16 banks apart",
            );
        }
        functions::ranking_constant(&mut writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
        writer.text(QUADS).text(CACHE_ROW).text(ORDERED);
        if rotation != Rotation::None {
            writer.text(ROTATE);
        }
        functions::chunk_list(&mut writer, self.stage);
        writer.text(LEFT_SLOT);
        let rope = if rotation == Rotation::None { "" } else { " const float2* __restrict__ rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,{rope}\n   {parents} unsigned* scores, int score_stride) {{"
        ));
        let (shape, size) =
            if copies == 2 { ("[2][COPY]", "2 * COPY") } else { ("[TILE_ROWS][STRIDE]", "TILE_ROWS * STRIDE") };
        let ranking = match self.layer.ranking {
            Ranking::All => None,
            Ranking::KvGroup => Some("kv_head"),
            Ranking::Each => Some("head"),
        };
        let positions = if rotation == Rotation::Chunks { "    SHARED(int, slot_position, PROBES);\n" } else { "" };
        writer.more(&PLACE.replace("$SHAPE", shape).replace("$SIZE", size).replace("$POSITIONS", positions));
        if let Some(ranking) = ranking {
            writer.more(&format!("    const int ranking = {ranking};"));
            writer.more(SCORE_ROW);
        }
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        let whole = self.tile_rows() == self.padded_rows();
        if whole {
            writer.text(&queries(rotation, "slot"));
        }
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let clamp = if self.stage == 0 {
            "min(left[thread] + CHUNK, step[STEP_T_MAX] - SCAN_WINDOW)"
        } else {
            "left[thread] + CHUNK"
        };
        let position = if rotation == Rotation::Chunks { POSITION } else { "" };
        writer.text(&GROUPS.replace("$POSITION", position).replace("$START(", start).replace("$RIGHT", clamp));
        let probes = Tile {
            from: "keys",
            to: "probes",
            rows: ("PROBES", self.probes()),
            threads: THREADS,
            head_dim: self.shape.head_dim(),
            loads: 16,
            indent: 12,
        };
        writer.more(&if rotation == Rotation::Chunks { probes.load_turned() } else { probes.load_plain() });
        writer.more("            sync_block();");
        let copy = if copies == 2 { "&queries[across / 4 * COPY]" } else { "queries" };
        let product = PRODUCT;
        writer.more(&PLACE_IN_PRODUCT.replace("$COPY", copy));
        if whole {
            writer.more(product);
        } else {
            writer.more("            // More rows than fit into shared memory: they take turns.");
            writer.more("            for (int tile = 0; tile < ROWS; tile += TILE_ROWS) {\n            sync_block();");
            writer.more(&queries(rotation, "tile + slot"));
            writer.more("            sync_block();");
            writer.more(&product.replace("< live_rows", "< live_rows - tile"));
            writer.more("            }");
        }
        writer.more(&DESCEND.replace("$SCORES", if ranking.is_some() { "score_row" } else { "block * score_stride" }));
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scan_arguments(self.shape, stage.rope, self.stage),
            threads: THREADS as u32,
            shared_bytes: (self.shared_floats(copies) * 4) as u32,
        }
    }
}

/// The part of a layer's constants that the scan of `stage` depends on, so that layers which differ elsewhere share it.
pub(super) fn scan_constants(layer: &PrunedLayer, stage: usize) -> PrunedLayer {
    let mut stages = layer.stages[..=stage].to_vec();
    for stage in &mut stages {
        stage.refresh = 1;
    }
    PrunedLayer {
        stages,
        keep_blocks: 0,
        query_block: 0,
        block: 1,
        attend_rope: crate::AttendRope::None,
        ..layer.clone()
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
const fn heads_of(ranking: Ranking) -> &'static str {
    match ranking {
        Ranking::All => "all heads",
        Ranking::KvGroup => "the heads of a group",
        Ranking::Each => "its head alone",
    }
}

pub(super) fn rope_word(rope: ScanRope) -> &'static str {
    match rope {
        ScanRope::Relative => "relative",
        ScanRope::ChunkIndexed => "chunk_indexed",
        ScanRope::Infllm => "infllm",
        ScanRope::DynamicExtend => "dynamic_extend",
        ScanRope::SelfExtend => "self_extend",
        ScanRope::None => "plain",
    }
}

/// `ihip_paper3k_s1_scan_relative_c32_k32768_d128_bf16`.
pub(super) fn stem(family: &str, pipeline: &str, shape: Shape, layer: &PrunedLayer, stage: usize) -> String {
    let rope = rope_word(layer.stages[stage].rope);
    let ranking = functions::ranking_word(layer.ranking);
    let chunk = layer.stages[stage].chunk;
    let keep = match layer.stages[stage].keep_chunks {
        Some(keep) => format!("_k{}", keep * layer.stages[stage - 1].chunk),
        None => String::new(),
    };
    format!("ihip_{pipeline}_s{stage}_{family}_{rope}{ranking}_c{chunk}{keep}_{}", shape.suffix())
}

pub(super) fn scan_arguments(shape: Shape, rope: ScanRope, stage: usize) -> Vec<Argument> {
    let mut arguments = vec![
        Argument { name: "step", kind: ArgumentKind::Input(Element::I32) },
        Argument { name: "qkv", kind: ArgumentKind::Input(shape.activation.element()) },
        Argument { name: "keys", kind: ArgumentKind::Input(Element::from(shape.kv())) },
        Argument { name: "page_table", kind: ArgumentKind::Input(Element::U32) },
    ];
    if rope != ScanRope::None {
        arguments.push(Argument { name: "rope_table", kind: ArgumentKind::Input(Element::Float2) });
    }
    if stage > 0 {
        arguments.push(Argument { name: "parents", kind: ArgumentKind::Input(Element::I32) });
    }
    arguments.push(Argument { name: "scores", kind: ArgumentKind::Output(Element::U32) });
    arguments.push(Argument { name: "score_stride", kind: ArgumentKind::I32 });
    arguments
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
    SHARED(float, best, CHUNKS);
    SHARED(unsigned, slot_row, PROBES);
$POSITIONS    SHARED(float, largest, ROW_WARPS * PROBES);

    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int head = blockIdx.y, kv_head = head / GROUP, block = blockIdx.z, thread = threadIdx.x;
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
";

/// Averages and rotates the block's queries.
fn queries(rotation: Rotation, row: &str) -> String {
    let store = match rotation {
        Rotation::None => String::new(),
        Rotation::Queries => turn("SCAN_WINDOW"),
        Rotation::Chunks => turn("min(start + first + row * QUERY_STRIDE, chunks + SCAN_WINDOW)"),
        Rotation::QueriesTwice => r"
        // Left probes are at position 0, right ones at 1, queries at SCAN_WINDOW + 1: what counts is the distance.
        float right_x = x, right_y = y;
        rotate(right_x, right_y, rope_table[SCAN_WINDOW * HALF + element]);
        queries[COPY + slot * STRIDE + element] = right_x;
        queries[COPY + slot * STRIDE + element + HALF] = right_y;
        rotate(x, y, rope_table[(SCAN_WINDOW + 1) * HALF + element]);"
            .to_owned(),
    };
    let store = store.trim_start_matches('\n');
    let store = if store.is_empty() { String::new() } else { format!("{store}\n") };
    format!(
        r"
    // A row is the mean of QUERY_STRIDE neighbours; those beyond the call are left out of it.
    for (int item = thread; item < TILE_ROWS * HALF; item += THREADS) {{
        const int slot = item / HALF, row = {row}, element = item % HALF;
        const int neighbours = min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE);
        float x = 0.0f, y = 0.0f;
        for (int neighbour = 0; neighbour < QUERY_STRIDE; ++neighbour) {{
            if (neighbour >= neighbours) continue;
            const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
            const Activation* const query = &qkv[at * QKV_ROW + head * HEAD_DIM + element];
            x += to_float(query[0]);
            y += to_float(query[HALF]);
        }}
        const float scale = neighbours > 0 ? QUERY_SCALE / static_cast<float>(neighbours) : 0.0f;
        x *= scale;
        y *= scale;
{store}        queries[slot * STRIDE + element] = x;
        queries[slot * STRIDE + element + HALF] = y;
    }}
"
    )
}

fn turn(position: &str) -> String {
    format!("        rotate(x, y, rope_table[({position}) * HALF + element]);")
}

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
            right[thread] = chunk < chunks ? $RIGHT : 0;
            best[thread] = LOWEST;
$POSITION        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The middle token of each half stands for it. An inactive chunk probes token 0 and ignores the product.
            if (thread < CHUNKS) {
                const bool active = left[thread] < right[thread] && left[thread] <= limit;
                const int middle = (left[thread] + right[thread]) / 2;
                const int slot = left_slot(thread);
                slot_row[slot] = cache_row(page_table, active ? (left[thread] + middle) / 2 : 0, kv_head);
                slot_row[slot + 4] = cache_row(page_table, active ? (middle + right[thread]) / 2 : 0, kv_head);
            }
            sync_block();
";

const PLACE_IN_PRODUCT: &str = r"
            const int lane = thread % 32, warp = thread / 32, across = lane % 8, down = lane / 8;
            const float* const own_queries = $COPY;
            const float* const warp_probes = &probes[warp / ROW_WARPS * 32 * STRIDE];
            float product[4] = {LOWEST, LOWEST, LOWEST, LOWEST};
";

const PRODUCT: &str = r"
            // 4 x 4 products a thread: rows down + 4 * i, probes across + 8 * j, which are all left ones or all right ones.
            for (int row = warp % ROW_WARPS * 16; row < TILE_ROWS; row += ROW_WARPS * 16) {
                float sum[4][4] = {};
#pragma unroll 4
                for (int element = 0; element < HEAD_DIM; element += 4) {
                    Quad<float> query[4], probe[4];
                    for (int i = 0; i < 4; ++i) query[i] = load_quad(&own_queries[(row + down + 4 * i) * STRIDE + element]);
                    for (int j = 0; j < 4; ++j) probe[j] = load_quad(&warp_probes[(across + 8 * j) * STRIDE + element]);
                    for (int i = 0; i < 4; ++i)
                        for (int j = 0; j < 4; ++j)
                            for (int e = 0; e < 4; ++e) sum[i][j] += query[i].at[e] * probe[j].at[e];
                }
                for (int i = 0; i < 4; ++i)
                    for (int j = 0; j < 4; ++j)
                        if (row + down + 4 * i < live_rows) product[j] = max(product[j], sum[i][j]);
            }
";

const DESCEND: &str = r"
            for (int j = 0; j < 4; ++j) {
                product[j] = max(product[j], shuffle_xor(product[j], 8));
                product[j] = max(product[j], shuffle_xor(product[j], 16));
                if (down == 0) largest[warp % ROW_WARPS * PROBES + warp / ROW_WARPS * 32 + across + 8 * j] = product[j];
            }
            sync_block();
            // A tie goes right. The score is the best probe of all halvings, not the one the descent ends at.
            if (thread < CHUNKS && left[thread] < right[thread] && left[thread] <= limit) {
                const int slot = left_slot(thread);
                float left_score = LOWEST, right_score = LOWEST;
                for (int row_warp = 0; row_warp < ROW_WARPS; ++row_warp) {
                    left_score = max(left_score, largest[row_warp * PROBES + slot]);
                    right_score = max(right_score, largest[row_warp * PROBES + slot + 4]);
                }
                const int middle = (left[thread] + right[thread]) / 2;
                if (left_score > right_score) {
                    right[thread] = middle;
                } else {
                    left[thread] = middle;
                }
                best[thread] = max(best[thread], max(left_score, right_score));
            }
        }
        if (thread < CHUNKS && best[thread] > LOWEST)
            atomic_max(&scores[$SCORES + group * CHUNKS + thread], ordered(max(best[thread], NEVER)));
    }
}
";
