//! Decoding in a dense layer without tensor cores, for caches of f32: attention of one query, split over the chip by
//! keys, and the merge of the splits.

use super::cached;
use super::functions::{QUADS, Shape, step_words};
use super::launch::Element;
use super::tile::Tile;
use super::visible::{Phase, Visible};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};

const THREADS: usize = 128;
/// Blocks of threads of a dense layer, over all heads: enough to fill a large chip, whatever the context.
const DENSE_BLOCKS: usize = 1024;
/// Splits of a dense layer at most: the merge goes through them one by one.
const DENSE_SPLITS: usize = 128;
/// Threads of the merge that share the splits of one element.
const MERGE_PARTS: usize = 4;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SplitDense {
    shape: Shape,
}

impl SplitDense {
    pub(crate) const fn new(shape: Shape) -> Self {
        Self { shape }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        Visible::All.stem(pipeline, Phase::Decode, self.shape)
    }

    /// Query heads of a group that one block of threads serves with the same keys.
    fn heads(&self) -> usize {
        (1..=8).rev().find(|heads| self.shape.group().is_multiple_of(*heads)).unwrap_or(1)
    }

    /// Pieces that the keys are split into: fixed, so that a result never depends on the chip.
    pub(crate) fn splits(&self) -> usize {
        (DENSE_BLOCKS / self.blocks_of_split()).clamp(1, DENSE_SPLITS)
    }

    fn blocks_of_split(&self) -> usize {
        self.shape.query_heads() / self.heads()
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        [self.splits() as u32, self.blocks_of_split() as u32, 1]
    }

    /// Keys that a block of threads holds at a time: what fits into the shared memory that every chip has.
    fn tile_keys(&self) -> usize {
        if self.shape.head_dim() > 128 { 32 } else { 64 }
    }

    fn shared_bytes(&self) -> usize {
        let (stride, keys) = (self.shape.head_dim() + 4, self.tile_keys());
        (2 * keys * stride + self.heads() * (stride + keys)) * 4
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = "Decoding in a dense layer: causal attention of one query over one of SPLITS pieces of the keys.\n\
                       A block of threads takes HEADS query heads of a group.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, dense"));
        self.shape.constants(&mut writer);
        writer
            .constant("SPLITS", self.splits(), "pieces of the keys")
            .constant("HEADS", self.heads(), "query heads of a block of threads: they share the keys")
            .constant("TILE_KEYS", self.tile_keys(), "keys in shared memory at a time")
            .constant("THREADS", THREADS, "threads of a block")
            .constant("WARPS", THREADS / 32, "warps of a block")
            .constant("STRIDE", self.shape.head_dim() + 4, "floats between rows in shared memory: no bank conflicts")
            .constant("QUADS", self.heads() * self.shape.head_dim() / 4, "quads of output")
            .constant(
                "QUADS_EACH",
                (self.heads() * self.shape.head_dim() / 4).div_ceil(THREADS),
                "of which a thread holds these",
            )
            .constant("NOWHERE", -1, "token of an empty slot")
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
        writer.text(QUADS);
        cached::rows(&mut writer, self.shape);
        cached::quads(&mut writer, self.shape);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const Cached* __restrict__ values, const unsigned* __restrict__ page_table, float* partials, float* partial_sums) {{"
        ));
        writer.more(PLACE).text(QUERIES).text(DENSE_SLOTS);
        let tile = |from, to| Tile {
            from,
            to,
            rows: ("TILE_KEYS", self.tile_keys()),
            threads: THREADS,
            shape: self.shape,
            loads: 16,
            indent: 8,
        };
        writer.more(&tile("keys", "key_tile").load_plain());
        writer.more(&tile("values", "value_tile").load_plain());
        writer.more(ATTEND);
        let mut arguments = Visible::All.arguments(self.shape);
        arguments.push(Argument { name: "partials", kind: ArgumentKind::Output(Element::F32) });
        arguments.push(Argument { name: "partial_sums", kind: ArgumentKind::Output(Element::F32) });
        Kernel {
            name: name.to_owned(),
            family: Family::Dense,
            text: writer.finish(),
            arguments,
            threads: THREADS as u32,
            shared_bytes: self.shared_bytes() as u32,
        }
    }
}

const PLACE: &str = r"
    SHARED_DYNAMIC(float, key_tile);                            // [TILE_KEYS][STRIDE]
    float* const value_tile = key_tile + TILE_KEYS * STRIDE;    // [TILE_KEYS][STRIDE]
    float* const queries = value_tile + TILE_KEYS * STRIDE;     // [HEADS][STRIDE]
    float* const weights = queries + HEADS * STRIDE;            // [HEADS][TILE_KEYS]
    SHARED(int, slot_token, TILE_KEYS);
    SHARED(unsigned, slot_row, TILE_KEYS);
    SHARED(float, largest, HEADS);
    SHARED(float, total, HEADS);
    SHARED(float, scale, HEADS);

    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, split = blockIdx.x;
    const int first_head = blockIdx.y * HEADS, kv_head = first_head / GROUP;
";

const QUERIES: &str = r"
    for (int item = thread; item < HEADS * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Activation* const from =
            &qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + (first_head + head) * HEAD_DIM + element];
        float x = to_float(from[0]) * QUERY_SCALE, y = to_float(from[HALF]) * QUERY_SCALE;
        queries[head * STRIDE + element] = x;
        queries[head * STRIDE + element + HALF] = y;
    }
    if (thread < HEADS) {
        largest[thread] = LOWEST;
        total[thread] = 0.0f;
    }
    float output[QUADS_EACH][4] = {};
";

const DENSE_SLOTS: &str = r"
    // Whole tiles a split, so that all splits but the last are of one length.
    const int tiles = position / TILE_KEYS + 1, tiles_each = (tiles + SPLITS - 1) / SPLITS;
    for (int tile = split * tiles_each; tile < min(tiles, split * tiles_each + tiles_each); ++tile) {
        sync_block();  // the tile before has been read
        if (thread < TILE_KEYS) {
            const int token = tile * TILE_KEYS + thread;
            slot_token[thread] = token <= position ? token : NOWHERE;
            slot_row[thread] = cache_row(page_table, min(token, position), kv_head);
        }
        sync_block();
";

const ATTEND: &str = r"
        sync_block();
        for (int item = thread; item < HEADS * TILE_KEYS; item += THREADS) {
            const int head = item / TILE_KEYS, slot = item % TILE_KEYS;
            float score = 0.0f;
#pragma unroll 8
            for (int element = 0; element < HEAD_DIM; element += 4) {
                const Quad<float> query = load_quad(&queries[head * STRIDE + element]);
                const Quad<float> key = load_quad(&key_tile[slot * STRIDE + element]);
                for (int e = 0; e < 4; ++e) score += query.at[e] * key.at[e];
            }
            weights[item] = slot_token[slot] == NOWHERE ? LOWEST : score;
        }
        sync_block();
        // A warp a head.
        for (int head = warp; head < HEADS; head += WARPS) {
            float own[TILE_KEYS / 32], top = largest[head], sum = 0.0f;
            for (int i = 0; i < TILE_KEYS / 32; ++i) {
                own[i] = weights[head * TILE_KEYS + lane + 32 * i];
                top = max(top, own[i]);
            }
            for (int mask = 16; mask > 0; mask /= 2) top = max(top, shuffle_xor(top, mask));
            for (int i = 0; i < TILE_KEYS / 32; ++i) {
                own[i] = own[i] > LOWEST ? exp2_fast(own[i] - top) : 0.0f;
                weights[head * TILE_KEYS + lane + 32 * i] = own[i];
                sum += own[i];
            }
            for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
            if (lane == 0) {
                scale[head] = exp2_fast(largest[head] - top);
                total[head] = total[head] * scale[head] + sum;
                largest[head] = top;
            }
        }
        sync_block();
        for (int i = 0; i < QUADS_EACH; ++i) {
            const int quad = thread + i * THREADS, head = quad * 4 / HEAD_DIM, element = quad * 4 % HEAD_DIM;
            if (quad >= QUADS) break;
            for (int e = 0; e < 4; ++e) output[i][e] *= scale[head];
#pragma unroll 8
            for (int slot = 0; slot < TILE_KEYS; ++slot) {
                const float weight = weights[head * TILE_KEYS + slot];
                const Quad<float> value = load_quad(&value_tile[slot * STRIDE + element]);
                for (int e = 0; e < 4; ++e) output[i][e] += weight * value.at[e];
            }
        }
    }

    sync_block();
    for (int i = 0; i < QUADS_EACH; ++i) {
        const int quad = thread + i * THREADS, head = quad * 4 / HEAD_DIM, element = quad * 4 % HEAD_DIM;
        if (quad >= QUADS) break;
        const int at = (first_head + head) * SPLITS + split;
        store_quad(&partials[at * HEAD_DIM + element], Quad<float>{{output[i][0], output[i][1], output[i][2], output[i][3]}});
    }
    if (thread < HEADS) {
        const int at = (first_head + thread) * SPLITS + split;
        partial_sums[at * 2] = largest[thread];
        partial_sums[at * 2 + 1] = total[thread];
    }
}
";

/// Constants of the merge, which every kind of layer shares.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merge {
    shape: Shape,
}

impl Merge {
    pub(crate) const fn new(shape: Shape) -> Self {
        Self { shape }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        format!("ihip_{pipeline}_merge_{}", self.shape.suffix())
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let mut writer = Writer::new(
            "Decoding: joins the splits of a query's attention, in a fixed order. One block of threads a query head, PARTS\n\
             threads an element.",
            &format!("{pipeline}, merge"),
        );
        let activation = self.shape.activation.element();
        writer.text(&step_words());
        writer.text(&format!("using Activation = {};", activation.word()));
        writer
            .constant("QUERY_HEADS", self.shape.query_heads(), "query heads")
            .constant("HEAD_DIM", self.shape.head_dim(), "elements of a head")
            .constant("PARTS", MERGE_PARTS, "threads of an element, each with its share of the splits")
            .constant("THREADS", MERGE_PARTS * self.shape.head_dim(), "threads of a block")
            .float("LOWEST", f32::MIN, "below every score");
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const float* partials, const float* partial_sums, Activation* out, int splits) {{"
        ));
        writer.more(MERGE);
        let input = |name, element| Argument { name, kind: ArgumentKind::Input(element) };
        Kernel {
            name: name.to_owned(),
            family: Family::Merge,
            text: writer.finish(),
            arguments: vec![
                input("step", Element::I32),
                input("partials", Element::F32),
                input("partial_sums", Element::F32),
                Argument { name: "out", kind: ArgumentKind::Output(activation) },
                Argument { name: "splits", kind: ArgumentKind::I32 },
            ],
            threads: MERGE_PARTS as u32 * self.shape.geometry.head_dim,
            shared_bytes: 0,
        }
    }
}

const MERGE: &str = r"
    SHARED(float, shares, PARTS * HEAD_DIM);
    const int first_row = step[STEP_FIRST_ROW], head = blockIdx.x, thread = threadIdx.x, lane = thread % 32;
    const int element = thread % HEAD_DIM, part = thread / HEAD_DIM;
    const float* const sums = partial_sums + head * splits * 2;
    // Every warp finds the largest score and the sum of all weights for itself.
    float largest = LOWEST, total = 0.0f;
    for (int split = lane; split < splits; split += 32) largest = max(largest, sums[split * 2]);
    for (int mask = 16; mask > 0; mask /= 2) largest = max(largest, shuffle_xor(largest, mask));
    for (int split = lane; split < splits; split += 32) total += sums[split * 2 + 1] * exp2_fast(sums[split * 2] - largest);
    for (int mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
    float share = 0.0f;
#pragma unroll 8
    for (int split = part; split < splits; split += PARTS)
        share += partials[(head * splits + split) * HEAD_DIM + element] * exp2_fast(sums[split * 2] - largest);
    shares[thread] = share;
    sync_block();
    if (part > 0) return;
    for (int other = 1; other < PARTS; ++other) share += shares[other * HEAD_DIM + element];
    const float result = total > 0.0f ? share / total : 0.0f;  // a row without a visible key is zero
    out[(static_cast<unsigned long long>(first_row) * QUERY_HEADS + head) * HEAD_DIM + element] = from_float<Activation>(result);
}
";
