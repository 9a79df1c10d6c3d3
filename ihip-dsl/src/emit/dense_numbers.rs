//! Decoding in a dense layer of a cache that tensor cores do not take as it lies: what [`super::dense_row`] does otherwise.
//!
//! Numbers stay as they are in shared memory, and lanes make factors of what a product takes from them. Of keys a lane
//! loads neighbours, to which a product is indifferent where queries come in the same order. Of values it loads runs of
//! four keys, and makes pairs of two keys' numbers: so nothing has to be transposed.

use super::cached;
use super::factor;
use super::functions::Shape;
use super::writer::Writer;

/// Defines what the texts of this file call, and their constants. [`factor::define`] comes before it.
pub(super) fn define(writer: &mut Writer, shape: Shape) {
    let pieces = shape.kv().number_bytes(shape.head_dim()) / 16;
    // Where a row has no such number of pieces, they stay where they are.
    let [keys, values] = if pieces.is_power_of_two() && pieces > 1 { [pieces / 2, 8.min(pieces)] } else { [0, 0] };
    writer
        .constant("ROW_PIECES", pieces, "16-byte pieces of a row's numbers")
        .constant("KEY_SPREAD", keys, "pieces that those of every other key lie further on: in other banks")
        .constant("VALUE_SPREAD", values, "pieces over which those of four pairs of values are spread");
    factor::loads(writer, shape);
    let bits = shape.kv().bits();
    let bytes = factor::each(shape) / 2 * bits / 8;
    let word = if bytes == 2 { "unsigned short" } else { "unsigned" };
    writer.constant("RUN", factor::each(shape) / 2, "neighbours of a value that a lane takes");
    let columns = if bits == 8 { EIGHT_BITS } else { FOUR_BITS };
    writer.text(
        &RUNS
            .replace("$BYTES", &bytes.to_string())
            .replace("$WORDS", &(bytes / 4).max(1).to_string())
            .replace("$WORD", word),
    );
    writer.text(columns).text(VALUE_PIECE);
}

/// `text` with or without what only numbers with scales need.
pub(super) fn adapt(shape: Shape, text: &str) -> String {
    let scaled = cached::scaled(shape);
    let either = |yes: &str, no: &str| (if scaled { yes } else { no }).trim_start_matches('\n').to_owned();
    text.replace("$SCALES\n", &either(SCALES, ""))
        .replace("$KEEP_SCALES\n", &either(KEEP_SCALES, ""))
        .replace("$LOAD_SCALES\n", &either(LOAD_SCALES, ""))
        .replace("$OWN_SCALES\n", &either(OWN_SCALES, ""))
        .replace("$SCORES\n", &either(SCALED_SCORES, SCORES))
        .replace("$FACTOR\n", &either(SCALED_FACTOR, ""))
}

const RUNS: &str = r"
// Neighbouring numbers of a value.
struct alignas($BYTES) Run {
    $WORD words[$WORDS];
};
";

const EIGHT_BITS: &str = r"
// Number i of two runs as a pair of factors.
inline unsigned pair_of(const Run& one, const Run& other, int i) {
    const unsigned word = __byte_perm(one.words[i / 4], other.words[i / 4], i % 4 < 2 ? 0x5140 : 0x7362);
    return factors(word, i % 2);
}
";

const FOUR_BITS: &str = r"
// Number i of two runs as a pair of factors.
inline unsigned pair_of(const Run& one, const Run& other, int i) {
    const unsigned low = one.words[0], high = other.words[0];
    const unsigned word = i % 2 == 0 ? (low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4
                                     : (low >> 4 & 0x0f0f0f0fu) | (high & 0xf0f0f0f0u);
    return factors(word, i / 2);
}
";

pub(super) const PLACE: &str = r"
    SHARED_DYNAMIC(Cached, tiles);  // [WARPS][STAGES][2][TILE_KEYS][ROW_BYTES]: numbers of keys and values of each warp
$SCALES
";

const SCALES: &str = r"
    SHARED(float, scales, WARPS * STAGES * 2 * TILE_KEYS * SCALES);
";

pub(super) const TILE: &str = "TILE_KEYS * ROW_BYTES";

pub(super) const COPY: &str = r"
    // Lane i has the row of key i % TILE_KEYS of the tile that is copied next.
    unsigned tile_row = 0;
    int tile_to_copy = first;
    const auto find_rows = [&] {
        tile_row = cache_row(page_table, min(tile_to_copy * TILE_KEYS + lane % TILE_KEYS, position), kv_head);
    };
$KEEP_SCALES
    const auto copy = [&](int stage) {
        Cached* const tile = own_tiles + stage * 2 * TILE_KEYS * ROW_BYTES;
        for (int i = 0; i < TILE_KEYS * ROW_PIECES; i += 32) {
            const int key = (i + lane) / ROW_PIECES, piece = (i + lane) % ROW_PIECES;
            const unsigned row = shuffle(tile_row, key % TILE_KEYS);
            if (key >= TILE_KEYS) continue;
            const bool valid = tile_to_copy < count;
            Cached* const key_to = &tile[key * ROW_BYTES + (piece ^ key % 2 * KEY_SPREAD) * 16];
            Cached* const value_to = &tile[(TILE_KEYS + key) * ROW_BYTES + value_piece(key, piece) * 16];
            copy_async_16(key_to, cached_numbers(keys, row) + piece * 16, valid);
            copy_async_16(value_to, cached_numbers(values, row) + piece * 16, valid);
        }
        copy_async_commit();
$LOAD_SCALES
        tile_to_copy += stride;
        find_rows();
    };
";

const KEEP_SCALES: &str = r"
    // A lane has the scales of a key or a value under way in registers, until the next tile is copied.
    float coming[SCALES] = {};
    float* const own_scales = scales + warp * STAGES * 2 * TILE_KEYS * SCALES;
    const auto keep_scales = [&](int stage) {
        float* const to = &own_scales[(stage * 2 * TILE_KEYS + lane) * SCALES];
        for (int scale = 0; scale < SCALES; ++scale) to[scale] = coming[scale];
    };
";

const LOAD_SCALES: &str = r"
        keep_scales((stage + STAGES - 1) % STAGES);
        for (int scale = 0; scale < SCALES; ++scale)
            coming[scale] = to_float(*cached_scale(lane < TILE_KEYS ? keys : values, tile_row, scale * SCALE_GROUP));
";

const VALUE_PIECE: &str = r"
// Where a piece of a value lies: four pairs of keys are read at a time.
inline int value_piece(int key, int piece) { return piece ^ key / 2 % 4 * (VALUE_SPREAD / 4); }
";

/// The element of a query that meets a lane's pair `i * 2 + half`.
pub(super) const QUERY_ELEMENT: &str =
    "((i * 2 + half) / (EACH / 2) * 4 + across) * EACH + (i * 2 + half) % (EACH / 2) * 2 + e";

pub(super) const KEYS: &str = r"
        const Cached* const key_tile = own_tiles + stage * 2 * TILE_KEYS * ROW_BYTES;
        const Cached* const value_tile = key_tile + TILE_KEYS * ROW_BYTES;
$OWN_SCALES
        float score[2][4] = {};
        for (int n = 0; n < 2; ++n) {
            const int key = n * 8 + down;
            unsigned pairs[2 * STEPS];
            for (int load = 0; load < LOADS; ++load) {
                const int byte = (load * 4 + across) * EACH * BITS / 8, piece = byte / 16 ^ key % 2 * KEY_SPREAD;
                const Numbers numbers = *reinterpret_cast<const Numbers*>(&key_tile[key * ROW_BYTES + piece * 16 + byte % 16]);
                for (int pair = 0; pair < EACH / 2; ++pair)
                    pairs[load * (EACH / 2) + pair] = factors(numbers.words[pair * BITS / 16], pair % (16 / BITS));
            }
$SCORES
        }
";

const OWN_SCALES: &str = r"
        const float* const key_scales = own_scales + stage * 2 * TILE_KEYS * SCALES;
        const float* const value_scales = key_scales + TILE_KEYS * SCALES;
";

const SCORES: &str = r"
            for (int i = 0; i < STEPS; ++i) mma_16x8x16<Factor>(score[n], query[i], {pairs[2 * i], pairs[2 * i + 1]});
";

const SCALED_SCORES: &str = r"
            for (int scale = 0; scale < SCALES; ++scale) {
                float sum[4] = {};
                for (int i = scale * (STEPS / SCALES); i < (scale + 1) * (STEPS / SCALES); ++i)
                    mma_16x8x16<Factor>(sum, query[i], {pairs[2 * i], pairs[2 * i + 1]});
                for (int e = 0; e < 4; ++e)
                    score[n][e] += sum[e] * key_scales[(n * 8 + across * 2 + e % 2) * SCALES + scale];
            }
";

/// Adds the weighted values; `weight` is there.
pub(super) const VALUES: &str = r"
        for (int load = 0; load < LOADS; ++load) {
$FACTOR
            // A lane's keys are those of its weights.
            Run run[4];
            for (int i = 0; i < 4; ++i) {
                const int key = across * 2 + i % 2 + i / 2 * 8, byte = (load * 4 * EACH + down * RUN) * BITS / 8;
                const int at = key * ROW_BYTES + value_piece(key, byte / 16) * 16 + byte % 16;
                run[i] = *reinterpret_cast<const Run*>(&value_tile[at]);
            }
            for (int i = 0; i < RUN; ++i) {
                const unsigned first_keys = pair_of(run[0], run[1], i), last_keys = pair_of(run[2], run[3], i);
                mma_16x8x16<Factor>(output[load * RUN + i], factor, {first_keys, last_keys});
            }
        }
";

const SCALED_FACTOR: &str = r"
            unsigned factor[4];
            for (int n = 0; n < 2; ++n) {
                float whole[2], rest[2];
                for (int e = 0; e < 2; ++e) {
                    // A value's scale becomes part of its weight.
                    const float x = weight[n][e] * value_scales[(n * 8 + across * 2 + e) * SCALES + load * SCALES / LOADS];
                    whole[e] = to_float(from_float<Factor>(x));
                    rest[e] = x - whole[e];
                }
                factor[2 * n] = pack<Factor>(whole[0], whole[1]);
                factor[2 * n + 1] = pack<Factor>(rest[0], rest[1]);
            }
";

/// The element of a column of tile `n` of the output.
pub(super) const OUTPUT_ELEMENT: &str = "n / RUN * 4 * EACH + (across * 2 + e) * RUN + n % RUN";
