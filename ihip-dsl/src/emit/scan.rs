//! Prefill: every query block descends every chunk that its first query may see (paper Algorithm 1).
//!
//! A block of threads takes one query head of one query block. It keeps the averaged queries in shared memory, gathers
//! the two probes of each chunk of a group beside them, and multiplies both as a register-tiled product.

use super::functions::{self, CACHE_ROW, ORDERED, QUADS, ROTATE, Shape};
use super::launch::Element;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::{PrunedLayer, ScanRope};

const THREADS: usize = 128;
const WARPS: usize = THREADS / 32;
/// Rows and probes of a warp's product: 8 threads across, 4 down, 4 × 4 results each.
const WARP_ROWS: usize = 16;
const WARP_PROBES: usize = 32;
/// Groups of chunks that one block of threads goes through, so that loading its queries is paid for once.
const GROUPS_PER_BLOCK: usize = 4;

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
        let groups = chunks.div_ceil(self.chunks_of_group()).div_ceil(GROUPS_PER_BLOCK).max(1);
        let blocks = rows.div_ceil(self.layer.stages[self.stage].query_block);
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

    fn shared_floats(&self, copies: usize) -> usize {
        (copies * self.tile_rows() + self.probes()) * (self.shape.head_dim() + 4)
    }

    fn rotation(&self) -> Rotation {
        match self.layer.scan_rope {
            ScanRope::None => Rotation::None,
            ScanRope::Infllm => Rotation::Queries,
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
             product of any averaged query with any probe, over all heads.",
            self.stage,
            stage.chunk,
            stage.query_block,
            stage.halvings,
            self.chunks_of_group()
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
            .constant("PROBES", self.probes(), "two a chunk: 16 left ones, then their right ones, and so on")
            .constant("STRIDE", self.shape.head_dim() + 4, "floats between rows in shared memory: no bank conflicts");
        if rotation == Rotation::QueriesTwice {
            writer.constant("COPIES", 2, "queries turned for left probes and for right ones");
        }
        writer.text(QUADS).text(CACHE_ROW).text(ORDERED);
        if rotation != Rotation::None {
            writer.text(ROTATE);
        }
        functions::chunk_list(&mut writer, self.stage);
        let rope = if rotation == Rotation::None { "" } else { "\n    const float2* rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* qkv, const Cached* keys, const unsigned* page_table,{rope}\n   {parents} unsigned* scores, int score_stride) {{"
        ));
        writer.more(&PLACE.replace("$COPIES", if copies == 2 { "COPIES * " } else { "" }));
        writer.more(chunks_here(self.stage));
        let whole = self.tile_rows() == self.padded_rows();
        if whole {
            writer.text(&queries(rotation, "slot"));
        }
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let clamp =
            if self.stage == 0 { "min(left[thread] + CHUNK, step[2] - SCAN_WINDOW)" } else { "left[thread] + CHUNK" };
        writer.text(&GROUPS.replace("$START(", start).replace("$RIGHT", clamp));
        writer.more(&probes(rotation));
        let product = if rotation == Rotation::QueriesTwice { PRODUCT_OF_TWO } else { PRODUCT };
        writer.more(PLACE_IN_PRODUCT);
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
        writer.more(DESCEND);
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scan_arguments(self.shape, self.layer.scan_rope, self.stage),
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

/// Defines `chunks`, and `kept` from the second stage on, for the query block `block`.
pub(super) const fn chunks_here(stage: usize) -> &'static str {
    if stage == 0 {
        "    const int chunks = chunk_count(step[2]);"
    } else {
        "    const int* const kept = parents + parent_block(block, rows) * (KEPT + 1);\n    const int chunks = chunk_count(kept);"
    }
}

pub(super) fn rope_word(rope: ScanRope) -> &'static str {
    match rope {
        ScanRope::Relative => "relative",
        ScanRope::ChunkIndexed => "chunk_indexed",
        ScanRope::Infllm => "infllm",
        ScanRope::None => "plain",
    }
}

/// `ihip_paper3k_s1_scan_relative_c32_k32768_d128_bf16`.
pub(super) fn stem(family: &str, pipeline: &str, shape: Shape, layer: &PrunedLayer, stage: usize) -> String {
    let rope = rope_word(layer.scan_rope);
    let chunk = layer.stages[stage].chunk;
    let keep = match layer.stages[stage].keep_chunks {
        Some(keep) => format!("_k{}", keep * layer.stages[stage - 1].chunk),
        None => String::new(),
    };
    format!("ihip_{pipeline}_s{stage}_{family}_{rope}_c{chunk}{keep}_{}", shape.suffix())
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

const PLACE: &str = r"
    SHARED_DYNAMIC(float, queries);                       // [$COPIESTILE_ROWS][STRIDE]
    float* const probes = queries + $COPIESTILE_ROWS * STRIDE;  // [PROBES][STRIDE]
    SHARED(int, left, CHUNKS);
    SHARED(int, right, CHUNKS);
    SHARED(float, best, CHUNKS);
    SHARED(unsigned, probe_row, PROBES);
    SHARED(float, largest, ROW_WARPS * PROBES);

    const int start = step[0], rows = step[1], first_row = step[3];
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
        queries[(TILE_ROWS + slot) * STRIDE + element] = right_x;
        queries[(TILE_ROWS + slot) * STRIDE + element + HALF] = right_y;
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
        for (int neighbour = 0; neighbour < neighbours; ++neighbour) {{
            const unsigned long long at = static_cast<unsigned long long>(first_row + first + row * QUERY_STRIDE + neighbour);
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

const GROUPS: &str = r"
    for (int group = blockIdx.x; group * CHUNKS < chunks; group += gridDim.x) {
        // The list is ascending: where a group's first chunk lies beyond the limit, so does every later one.
        if ($START(group * CHUNKS) > limit) break;
        if (thread < CHUNKS) {
            const int chunk = group * CHUNKS + thread;
            left[thread] = chunk < chunks ? $START(chunk) : 0;
            right[thread] = chunk < chunks ? $RIGHT : 0;
            best[thread] = LOWEST;
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The middle token of each half stands for it. An inactive chunk probes token 0 and ignores the product.
            if (thread < CHUNKS) {
                const bool active = left[thread] < right[thread] && left[thread] <= limit;
                const int middle = (left[thread] + right[thread]) / 2;
                const int slot = thread / 16 * 32 + thread % 16;
                probe_row[slot] = cache_row(page_table, active ? (left[thread] + middle) / 2 : 0, kv_head);
                probe_row[slot + 16] = cache_row(page_table, active ? (middle + right[thread]) / 2 : 0, kv_head);
            }
            sync_block();
";

/// Gathers the probes into shared memory.
fn probes(rotation: Rotation) -> String {
    match rotation {
        Rotation::None | Rotation::Queries | Rotation::QueriesTwice => r"
#pragma unroll 8
            for (int item = thread; item < PROBES * HEAD_DIM / 4; item += THREADS) {
                const int slot = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
                const unsigned long long row = probe_row[slot];
                store_quad(&probes[slot * STRIDE + element], load_quad(&keys[row * HEAD_DIM + element]));
            }
            sync_block();
"
        .to_owned(),
        Rotation::Chunks => r"
            // A key's position is the index of its chunk in the list.
#pragma unroll 4
            for (int item = thread; item < PROBES * HALF / 4; item += THREADS) {
                const int slot = item / (HALF / 4), element = item % (HALF / 4) * 4;
                const int chunk = group * CHUNKS + slot / 32 * 16 + slot % 16;
                const unsigned long long row = probe_row[slot];
                const float2* const angles = &rope_table[chunk * HALF + element];
                Quad<float> x = load_quad(&keys[row * HEAD_DIM + element]);
                Quad<float> y = load_quad(&keys[row * HEAD_DIM + element + HALF]);
                for (int i = 0; i < 4; ++i) rotate(x.at[i], y.at[i], angles[i]);
                store_quad(&probes[slot * STRIDE + element], x);
                store_quad(&probes[slot * STRIDE + element + HALF], y);
            }
            sync_block();
"
        .to_owned(),
    }
}

const PLACE_IN_PRODUCT: &str = r"
            const int lane = thread % 32, warp = thread / 32, across = lane % 8, down = lane / 8;
            const float* const warp_probes = &probes[warp / ROW_WARPS * 32 * STRIDE];
            float product[4] = {LOWEST, LOWEST, LOWEST, LOWEST};
";

const PRODUCT: &str = r"
            // 4 x 4 products a thread: rows down + 4 * i, probes across + 8 * j.
            for (int row = warp % ROW_WARPS * 16; row < TILE_ROWS; row += ROW_WARPS * 16) {
                float sum[4][4] = {};
#pragma unroll 4
                for (int element = 0; element < HEAD_DIM; element += 4) {
                    Quad<float> query[4], probe[4];
                    for (int i = 0; i < 4; ++i) query[i] = load_quad(&queries[(row + down + 4 * i) * STRIDE + element]);
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

const PRODUCT_OF_TWO: &str = r"
            // 4 x 4 products a thread: rows down + 4 * i, probes across + 8 * j, the first two left and the others right.
            for (int row = warp % ROW_WARPS * 16; row < TILE_ROWS; row += ROW_WARPS * 16) {
                float sum[4][4] = {};
#pragma unroll 4
                for (int element = 0; element < HEAD_DIM; element += 4) {
                    Quad<float> probe[4];
                    for (int j = 0; j < 4; ++j) probe[j] = load_quad(&warp_probes[(across + 8 * j) * STRIDE + element]);
                    for (int i = 0; i < 4; ++i) {
                        const float* const query = &queries[(row + down + 4 * i) * STRIDE + element];
                        const Quad<float> for_left = load_quad(query), for_right = load_quad(query + TILE_ROWS * STRIDE);
                        for (int j = 0; j < 4; ++j)
                            for (int e = 0; e < 4; ++e)
                                sum[i][j] += (j < 2 ? for_left : for_right).at[e] * probe[j].at[e];
                    }
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
                const int slot = thread / 16 * 32 + thread % 16;
                float left_score = LOWEST, right_score = LOWEST;
                for (int rows_of = 0; rows_of < ROW_WARPS; ++rows_of) {
                    left_score = max(left_score, largest[rows_of * PROBES + slot]);
                    right_score = max(right_score, largest[rows_of * PROBES + slot + 16]);
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
            atomic_max(&scores[block * score_stride + group * CHUNKS + thread], ordered(max(best[thread], NEVER)));
    }
}
";
