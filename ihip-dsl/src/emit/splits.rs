//! The splits of a decoding step's attention: what a block of threads makes of its values, and how the block that comes
//! last joins all of them.

use super::launch::{Activation, Element};
use super::{Argument, ArgumentKind};

/// Splits that a thread joins with their loads under way together, at most.
const MOST_JOINED: usize = 16;

/// How many of `splits` a thread joins at a time where `parts` threads share them.
pub(super) fn joined(splits: usize, parts: usize) -> usize {
    splits.div_ceil(parts).clamp(1, MOST_JOINED)
}

/// What a kernel writes whose last block joins the splits.
pub(super) fn split_outputs(activation: Activation) -> [Argument; 4] {
    let output = |name, element| Argument { name, kind: ArgumentKind::Output(element) };
    [
        output("partials", Element::F32),
        output("partial_sums", Element::F32),
        output("arrivals", Element::U32),
        output("out", activation.element()),
    ]
}

/// Sums up the values on the cores, in threads' parts of the keys.
pub(super) const OUTPUT: &str = r"
    // A thread has four elements of a head, of its part of the keys.
    const int quad = thread % QUADS, part = thread / QUADS;
    const int head = quad * 4 / HEAD_DIM, at = quad * 4 % HEAD_DIM;
    const unsigned long long row = first_head + head;
    Quad<float> output = {};
    if (part < PARTS) {
#pragma unroll 8
        for (int slot = part; slot < TILE_KEYS; slot += PARTS) {
            const float weight = weights[head * WEIGHT_ROW + slot];
            const Quad<float> value = $VALUE;
            for (int e = 0; e < 4; ++e) output.at[e] += weight * value.at[e];
        }
        store_quad(&shares[thread * 4], output);
    }
    sync_block();
    if (part == 0) {
        for (int other = 1; other < PARTS; ++other) {
            const Quad<float> share = load_quad(&shares[(other * QUADS + quad) * 4]);
            for (int e = 0; e < 4; ++e) output.at[e] += share.at[e];
        }
        store_quad(&partials[(row * SPLITS + split) * HEAD_DIM + at], output);
        if (at == 0) {
            partial_sums[(row * SPLITS + split) * 2] = largest[head];
            partial_sums[(row * SPLITS + split) * 2 + 1] = total[head];
        }
    }
";

/// The same on tensor cores: weights are rows of a product, split into what the cache's type holds and the rest.
pub(super) const OUTPUT_PRODUCTS: &str = r"
    // Rows 0 to 7 are the heads' weights as the cache's type holds them, rows 8 to 15 what rounding took from them.
    // A warp has sixteen elements of the output at a time.
    const int across = lane % 4, down = lane / 4;
    for (int step = warp; step < HEAD_DIM / 16; step += WARPS) {
        float output[4][4] = {};
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
            unsigned factor[4], value[4];
            for (int half = 0; half < 2; ++half) {
                const float2* const pairs = reinterpret_cast<const float2*>(&weights[min(down, HEADS - 1) * WEIGHT_ROW]);
                const float2 pair = pairs[k * 8 + half * 4 + across];
                const unsigned whole = pack<Cached>(pair.x, pair.y);
                const Cached low = {static_cast<unsigned short>(whole)}, high = {static_cast<unsigned short>(whole >> 16)};
                const unsigned rest = pack<Cached>(pair.x - to_float(low), pair.y - to_float(high));
                factor[2 * half] = down < HEADS ? whole : 0;
                factor[2 * half + 1] = down < HEADS ? rest : 0;
            }
            load_matrix_x4_transposed(value, &value_tile[piece_at(k * 16 + lane % 16, 2 * step + lane / 16)]);
            // Two sums of each: products that wait for each other's sums are half as many.
            mma_16x8x16<Cached>(output[k % 2 * 2], factor, {value[0], value[1]});
            mma_16x8x16<Cached>(output[k % 2 * 2 + 1], factor, {value[2], value[3]});
        }
        if (down >= HEADS) continue;
        const unsigned long long part_row = (first_head + down) * SPLITS + split;
        float* const to = &partials[part_row * HEAD_DIM + step * 16 + across * 2];
        for (int n = 0; n < 2; ++n)
            for (int e = 0; e < 2; ++e)
                to[n * 8 + e] = output[n][e] + output[n + 2][e] + (output[n][e + 2] + output[n + 2][e + 2]);
    }
    if (thread < HEADS) {
        float* const to = &partial_sums[((first_head + thread) * SPLITS + split) * 2];
        to[0] = largest[thread];
        to[1] = total[thread];
    }
    const int quad = thread % QUADS, part = thread / QUADS;
    const int head = quad * 4 / HEAD_DIM, at = quad * 4 % HEAD_DIM;
    const unsigned long long row = first_head + head;
";

/// Joins the splits in the last block of those that share their heads. Defined are `part`, `quad`, `head`, `at` and
/// `row`; `shares`, `largest` and `total` have room for every part.
pub(super) const JOIN: &str = r"
    // The last block of these heads joins their splits; no one waits for it.
    sync_block();
    if (thread == 0) {
        fence_device();
        arrived[0] = atomic_add(&arrivals[blockIdx.y], 1);
        fence_device();
    }
    sync_block();
    if (arrived[0] != SPLITS - 1) return;
    if (thread == 0) arrivals[blockIdx.y] = 0;
    float top = LOWEST, sum = 0.0f;
    Quad<float> joined = {};
    if (part < PARTS) {
        for (int first = part; first < SPLITS; first += BATCH * PARTS) {
            Quad<float> share[BATCH];
            float its_top[BATCH], its_sum[BATCH];
            for (int i = 0; i < BATCH; ++i) {
                const unsigned long long from = row * SPLITS + min(first + i * PARTS, SPLITS - 1);
                share[i] = load_quad(&partials[from * HEAD_DIM + at]);
                its_top[i] = first + i * PARTS < SPLITS ? partial_sums[from * 2] : LOWEST;
                its_sum[i] = partial_sums[from * 2 + 1];
            }
            float most = top;
            for (int i = 0; i < BATCH; ++i) most = max(most, its_top[i]);
            const float scale = exp2_fast(top - most);
            sum *= scale;
            for (int e = 0; e < 4; ++e) joined.at[e] *= scale;
            for (int i = 0; i < BATCH; ++i) {
                const float factor = its_top[i] > LOWEST ? exp2_fast(its_top[i] - most) : 0.0f;
                sum += its_sum[i] * factor;
                for (int e = 0; e < 4; ++e) joined.at[e] += share[i].at[e] * factor;
            }
            top = most;
        }
        store_quad(&shares[thread * 4], joined);
        if (at == 0) {
            largest[part * HEADS + head] = top;
            total[part * HEADS + head] = sum;
        }
    }
    sync_block();
    if (part > 0) return;
    for (int other = 1; other < PARTS; ++other) {
        const Quad<float> share = load_quad(&shares[(other * QUADS + quad) * 4]);
        const float its_top = largest[other * HEADS + head], most = max(top, its_top);
        const float scale = exp2_fast(top - most), factor = its_top > LOWEST ? exp2_fast(its_top - most) : 0.0f;
        sum = sum * scale + total[other * HEADS + head] * factor;
        for (int e = 0; e < 4; ++e) joined.at[e] = joined.at[e] * scale + share.at[e] * factor;
        top = most;
    }
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row without a visible key is zero
    for (int e = 0; e < 4; ++e) joined.at[e] *= factor;
    store_quad(&out[(static_cast<unsigned long long>(first_row) * QUERY_HEADS + row) * HEAD_DIM + at], joined);
}
";
