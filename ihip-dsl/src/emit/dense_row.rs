//! Decoding in a dense layer on tensor cores: every key once, at the speed of the memory.
//!
//! Each warp has a pipeline of its own: tiles of keys and values are copied into shared memory some tiles ahead, and
//! nobody waits for another warp before the end. The heads of a group are rows of one product; queries and weights are
//! split into what the factors' type holds of them and the rest, which are further rows of the same product and cost
//! nothing.

use super::cached;
use super::dense_numbers;
use super::factor;
use super::functions::{CACHE_ROW, QUADS, Shape};
use super::splits::{JOIN, split_outputs};
use super::tune::Tune;
use super::visible::{Phase, Visible};
use super::writer::Writer;
use super::{Family, Kernel};
use crate::tuning::{DenseDecode, Tuning};

/// Keys of a warp's tile: those of one product.
const TILE_KEYS: usize = 16;
/// Warps of a block, and blocks of threads over all key-value heads: one for each multiprocessor of a large chip.
const WARPS: usize = 4;
const BLOCKS: usize = 128;
/// Tiles of a warp in shared memory at most.
const MOST_STAGES: usize = 4;
/// Shared memory of a block of threads, in bytes: the largest that every chip since sm_80 has.
const MOST_SHARED: usize = 96 * 1024;
/// Rows of a product that hold queries; as many hold what rounding took from them.
const ROWS: usize = 8;
/// Splits at most: whoever joins them goes through all.
const MOST_SPLITS: usize = 64;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DenseRow {
    shape: Shape,
    tuning: DenseDecode,
}

impl DenseRow {
    /// The kernel, where one product has room for the heads of a group.
    pub(crate) fn new(shape: Shape) -> Option<Self> {
        let rows = matches!(shape.head_dim(), 32 | 64 | 128);
        let fits = rows && shape.group() <= ROWS && shape.group() * shape.head_dim() / 4 <= 32 * WARPS;
        let stages = (MOST_SHARED / (WARPS * stage_bytes(shape))).min(MOST_STAGES);
        let tuning = DenseDecode { warps: WARPS, stages, blocks: BLOCKS };
        (shape.kv().factor().is_some() && fits).then_some(Self { shape, tuning })
    }

    /// Pieces that the keys are split into: fixed, so that a result never depends on the chip.
    pub(crate) fn splits(&self) -> usize {
        (self.tuning.blocks / self.shape.kv_heads()).clamp(1, MOST_SPLITS)
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        [self.splits() as u32, self.shape.kv_heads() as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let DenseDecode { warps, stages, .. } = self.tuning;
        let threads = 32 * warps;
        let heading = "Decoding in a dense layer: causal attention of one query over one of SPLITS pieces of the keys.\n\
                       A block of threads takes the query heads of a group; the last one of them joins the splits.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, dense"));
        self.shape.constants(&mut writer);
        let quads = self.shape.group() * self.shape.head_dim() / 4;
        writer
            .constant("SPLITS", self.splits(), "pieces of the keys")
            .constant("HEADS", self.shape.group(), "query heads of a block of threads: they share the keys")
            .constant("TILE_KEYS", TILE_KEYS, "keys of a warp's tile")
            .constant("STAGES", stages, "tiles of a warp in shared memory")
            .constant("THREADS", threads, "threads of a block")
            .constant("WARPS", warps, "warps of a block")
            .constant("STEPS", self.shape.head_dim() / 16, "products along a row")
            .constant("QUADS", quads, "quads of output")
            .constant("PARTS", threads / quads, "threads that share the splits of a quad")
            .constant("SUMS", warps.max(threads / quads), "sums of a head: one a warp at first, then one a part")
            .constant("BATCH", 8, "splits that are joined at a time")
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
        factor::define(&mut writer, self.shape);
        writer.text(QUADS).text(CACHE_ROW);
        if factor::converts(self.shape) {
            dense_numbers::define(&mut writer, self.shape);
        } else {
            writer.constant("PIECES", self.shape.head_dim() / 8, "16-byte pieces of a row");
            writer.text(PIECE_AT);
        }
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const Cached* __restrict__ values, const unsigned* __restrict__ page_table, float* partials, float* partial_sums,\n    unsigned* arrivals, Activation* out) {{"
        ));
        writer.more(&self.body()).text(JOIN);
        let mut arguments = Visible::All.arguments(self.shape);
        arguments.extend(split_outputs(self.shape.activation));
        Kernel {
            name: name.to_owned(),
            family: Family::Dense,
            text: writer.finish(),
            arguments,
            threads: threads as u32,
            shared_bytes: (warps * stages * stage_bytes(self.shape)) as u32,
        }
    }
}

impl DenseRow {
    /// Everything up to where splits are joined.
    fn body(&self) -> String {
        let converts = factor::converts(self.shape);
        let either = |yes: &str, no: &str| (if converts { yes } else { no }).trim_start_matches('\n').to_owned();
        // Where values have scales, each scale has weights of its own.
        let weights = if cached::scaled(self.shape) { SUMS } else { FACTORS };
        let body = BODY
            .replace("$PLACE\n", &either(dense_numbers::PLACE, PLACE))
            .replace("$TILE", &either(dense_numbers::TILE, "TILE_KEYS * HEAD_DIM"))
            .replace("$COPY\n", &either(dense_numbers::COPY, COPY))
            .replace("$QUERY_ELEMENT", &either(dense_numbers::QUERY_ELEMENT, "i * 16 + half * 8 + across * 2 + e"))
            .replace("$KEYS\n", &either(dense_numbers::KEYS, KEYS))
            .replace("$WEIGHTS\n", weights.trim_start_matches('\n'))
            .replace("$VALUES\n", &either(dense_numbers::VALUES, VALUES))
            .replace("$OUTPUT_ELEMENT", &either(dense_numbers::OUTPUT_ELEMENT, "n * 8 + across * 2 + e"));
        dense_numbers::adapt(self.shape, &body)
    }
}

/// Bytes of one tile of keys and one of values.
fn stage_bytes(shape: Shape) -> usize {
    2 * TILE_KEYS * shape.kv().number_bytes(shape.head_dim())
}

impl Tune for DenseRow {
    fn stem(&self, pipeline: &str) -> String {
        Visible::All.stem(pipeline, Phase::Decode, self.shape)
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::DenseDecode(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        let splits = |blocks| Self { tuning: DenseDecode { blocks, ..self.tuning }, ..self.clone() }.splits();
        // Blocks beyond the most splits are no others.
        let blocks: &[usize] = if splits(2 * BLOCKS) > splits(BLOCKS) { &[BLOCKS, 2 * BLOCKS] } else { &[BLOCKS] };
        let mut choices = Vec::new();
        for warps in [4, 8] {
            for stages in [2, 3, 4, 6] {
                choices.extend(blocks.iter().map(|&blocks| DenseDecode { warps, stages, blocks }));
            }
        }
        choices.into_iter().map(Tuning::DenseDecode).collect()
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::DenseDecode(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

/// Where rows lie in shared memory that are read as matrices.
pub(super) const PIECE_AT: &str = r"
// Where a piece of 16 bytes of a row lies in shared memory: the same pieces of neighbouring rows are in other banks.
inline int piece_at(int row, int piece) { return row * HEAD_DIM + (piece ^ (row & min(7, (PIECES & -PIECES) - 1))) * 8; }
";

const BODY: &str = r"
$PLACE
    SHARED(float, largest, SUMS * HEADS);
    SHARED(float, total, SUMS * HEADS);
    SHARED(unsigned, arrived, 1);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, split = blockIdx.x, kv_head = blockIdx.y;
    const int across = lane % 4, down = lane / 4;
    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    Cached* const own_tiles = tiles + warp * STAGES * 2 * $TILE;

    // A split is every SPLITS-th run of WARPS tiles, a warp's own tiles are WARPS apart.
    const int count = position / TILE_KEYS + 1, stride = SPLITS * WARPS;
    const int first = split * WARPS + warp;
$COPY
    find_rows();
    for (int stage = 0; stage < STAGES - 1; ++stage) copy(stage);

    // Rows 0 to 7 of the queries are rounded to the factors' type, rows 8 to 15 hold what rounding took from them.
    unsigned query[STEPS][4];
    for (int i = 0; i < STEPS; ++i)
        for (int half = 0; half < 2; ++half) {
            float whole[2] = {}, rest[2] = {};
            for (int e = 0; e < 2; ++e) {
                if (down >= HEADS) continue;
                const int element = $QUERY_ELEMENT;
                const float x = QUERY_SCALE * to_float(qkv[static_cast<unsigned long long>(first_row) * QKV_ROW +
                                                          (kv_head * HEADS + down) * HEAD_DIM + element]);
                whole[e] = to_float(from_float<Factor>(x));
                rest[e] = x - whole[e];
            }
            query[i][half * 2] = pack<Factor>(whole[0], whole[1]);
            query[i][half * 2 + 1] = pack<Factor>(rest[0], rest[1]);
        }

    float output[HEAD_DIM / 8][4] = {};
    float warp_top = LOWEST, warp_sum = 0.0f;
    int stage = 0;
    for (int tile = first; tile < count; tile += stride) {
        copy((stage + STAGES - 1) % STAGES);
        copy_async_wait<STAGES - 1>();
        sync_warp();
$KEYS
        float weight[2][2], most = warp_top;
        for (int n = 0; n < 2; ++n)
            for (int e = 0; e < 2; ++e) {
                weight[n][e] = score[n][e] + score[n][e + 2];
                if (tile * TILE_KEYS + n * 8 + across * 2 + e > position) weight[n][e] = LOWEST;
                most = max(most, weight[n][e]);
            }
        most = max(most, shuffle_xor(most, 1));
        most = max(most, shuffle_xor(most, 2));
        if (ballot(most > warp_top) != 0) {
            const float scale = exp2_fast(warp_top - most);
            warp_sum *= scale;
            for (int n = 0; n < HEAD_DIM / 8; ++n)
                for (int e = 0; e < 4; ++e) output[n][e] *= scale;
            warp_top = most;
        }
$WEIGHTS
$VALUES
        sync_warp();
        stage = (stage + 1) % STAGES;
    }
    copy_async_wait<0>();
    warp_sum += shuffle_xor(warp_sum, 1);
    warp_sum += shuffle_xor(warp_sum, 2);
    sync_block();
    // The warps of a block become one split.
    float* const shares = reinterpret_cast<float*>(tiles);  // [WARPS][HEADS][HEAD_DIM]
    if (down < HEADS) {
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            for (int e = 0; e < 2; ++e) {
                const int element = $OUTPUT_ELEMENT;
                shares[(warp * HEADS + down) * HEAD_DIM + element] = output[n][e] + output[n][e + 2];
            }
        if (across == 0) {
            largest[warp * HEADS + down] = warp_top;
            total[warp * HEADS + down] = warp_sum;
        }
    }
    sync_block();
    const int quad = thread % QUADS, part = thread / QUADS;
    const int head = quad * 4 / HEAD_DIM, at = quad * 4 % HEAD_DIM;
    const unsigned long long row = kv_head * HEADS + head;
    if (part == 0) {
        float most = LOWEST, weights = 0.0f;
        Quad<float> both = {};
        for (int other = 0; other < WARPS; ++other) most = max(most, largest[other * HEADS + head]);
        for (int other = 0; other < WARPS; ++other) {
            const float factor = exp2_fast(largest[other * HEADS + head] - most);
            const Quad<float> share = load_quad(&shares[(other * QUADS + quad) * 4]);
            weights += total[other * HEADS + head] * factor;
            for (int e = 0; e < 4; ++e) both.at[e] += share.at[e] * factor;
        }
        store_quad(&partials[(row * SPLITS + split) * HEAD_DIM + at], both);
        if (at == 0) {
            partial_sums[(row * SPLITS + split) * 2] = most;
            partial_sums[(row * SPLITS + split) * 2 + 1] = weights;
        }
    }
";

const PLACE: &str = r"
    SHARED_DYNAMIC(Cached, tiles);  // [WARPS][STAGES][2][TILE_KEYS][HEAD_DIM]: keys and values of each warp
";

const COPY: &str = r"
    // Lane i has the row of the i-th key of the tile that is copied next.
    unsigned tile_row = 0;
    int tile_to_copy = first;
    const auto find_rows = [&] {
        if (lane < TILE_KEYS) tile_row = cache_row(page_table, min(tile_to_copy * TILE_KEYS + lane, position), kv_head);
    };
    const auto copy = [&](int stage) {
        Cached* const tile = own_tiles + stage * 2 * TILE_KEYS * HEAD_DIM;
        for (int i = 0; i < TILE_KEYS * PIECES / 32; ++i) {
            const int key = (i * 32 + lane) / PIECES, piece = lane % PIECES;
            const unsigned long long from = static_cast<unsigned long long>(shuffle(tile_row, key)) * HEAD_DIM + piece * 8;
            const bool valid = tile_to_copy < count;
            copy_async_16(&tile[piece_at(key, piece)], &keys[from], valid);
            copy_async_16(&tile[TILE_KEYS * HEAD_DIM + piece_at(key, piece)], &values[from], valid);
        }
        copy_async_commit();
        tile_to_copy += stride;
        find_rows();
    };
";

const KEYS: &str = r"
        const Cached* const key_tile = own_tiles + stage * 2 * TILE_KEYS * HEAD_DIM;
        const Cached* const value_tile = key_tile + TILE_KEYS * HEAD_DIM;
        float score[2][4] = {};
        for (int i = 0; i < STEPS; ++i) {
            unsigned key[4];
            load_matrix_x4(key, &key_tile[piece_at(lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2)]);
            mma_16x8x16<Factor>(score[0], query[i], {key[0], key[1]});
            mma_16x8x16<Factor>(score[1], query[i], {key[2], key[3]});
        }
";

const FACTORS: &str = r"
        unsigned factor[4];
        for (int n = 0; n < 2; ++n) {
            float whole[2], rest[2];
            for (int e = 0; e < 2; ++e) {
                const float x = exp2_fast(weight[n][e] - warp_top);
                warp_sum += x;
                whole[e] = to_float(from_float<Factor>(x));
                rest[e] = x - whole[e];
            }
            factor[2 * n] = pack<Factor>(whole[0], whole[1]);
            factor[2 * n + 1] = pack<Factor>(rest[0], rest[1]);
        }
";

const VALUES: &str = r"
        for (int i = 0; i < STEPS; ++i) {
            unsigned value[4];
            load_matrix_x4_transposed(value, &value_tile[piece_at(lane % 16, 2 * i + lane / 16)]);
            mma_16x8x16<Factor>(output[2 * i], factor, {value[0], value[1]});
            mma_16x8x16<Factor>(output[2 * i + 1], factor, {value[2], value[3]});
        }
";

const SUMS: &str = r"
        for (int n = 0; n < 2; ++n)
            for (int e = 0; e < 2; ++e) {
                weight[n][e] = exp2_fast(weight[n][e] - warp_top);
                warp_sum += weight[n][e];
            }
";
