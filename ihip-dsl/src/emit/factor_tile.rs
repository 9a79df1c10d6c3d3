//! Tiles of a cache that tensor cores do not take as it lies: numbers are copied into shared memory, and made factors of
//! there.
//!
//! A thread converts what it copied itself, so that nobody waits for another's copy. Scales are not among it: those of
//! values become part of the weights, those of keys are multiplied to sums, or to numbers that are turned in f32.

use super::cached;
use super::factor;
use super::functions::Shape;
use super::writer::Writer;

/// Defines what the texts of this file call, and their constants; `turns` says whether keys are turned.
/// [`factor::define`] comes before it.
pub(super) fn define(writer: &mut Writer, shape: Shape, turns: bool) {
    writer.constant("ROW_PIECES", shape.kv().number_bytes(shape.head_dim()) / 16, "16-byte pieces of a row's numbers");
    factor::pieces(writer);
    if turns {
        factor::eights(writer);
    }
}

/// Bytes of a tile of `keys` keys as they were cached.
pub(super) const fn bytes(shape: Shape, keys: usize) -> usize {
    keys * shape.kv().number_bytes(shape.head_dim())
}

/// `text` with or without what only numbers with scales need.
pub(super) fn adapt(shape: Shape, text: &str) -> String {
    let scaled = cached::scaled(shape);
    let either = |piece: &str| if scaled { piece.trim_start_matches('\n').to_owned() } else { String::new() };
    text.replace("$SCALES\n", &either(SCALE_ARRAYS))
        .replace("$LOOK_UP\n", &either(LOOK_UP))
        .replace("$FIRST_KEYS\n", &either("    look_up(key_scale, keys, 0);\n"))
        .replace("$FIRST_VALUES\n", &either("    look_up(value_scale, values, 0);\n"))
        .replace("$STORE_KEYS\n", &either("        store_scales(key_scales, key_scale);\n"))
        .replace("$STORE_VALUES\n", &either("        store_scales(value_scales, value_scale);\n"))
        .replace("$NEXT_KEYS\n", &either("        look_up(key_scale, keys, tile_index + 1);\n"))
        .replace("$NEXT_VALUES\n", &either("        look_up(value_scale, values, tile_index + 1);\n"))
        .replace("$THESE_VALUES\n", &either("        look_up(value_scale, values, tile_index);\n"))
        .replace("$PIECE_SCALES\n", &either(PIECE_SCALES))
        .replace("$LOW_SCALE", if scaled { " * low_scale" } else { "" })
        .replace("$HIGH_SCALE", if scaled { " * high_scale" } else { "" })
}

const SCALE_ARRAYS: &str = r"
    SHARED(float, key_scales, TILE_KEYS * SCALES);
    SHARED(float, value_scales, TILE_KEYS * SCALES);
";

const LOOK_UP: &str = r"
    // A thread has the scales of a slot under way in registers.
    float key_scale[SCALES], value_scale[SCALES];
    const auto look_up = [&](float (&to)[SCALES], const Cached* from, int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        const int slot = tile_index % 3 * TILE_KEYS + thread;
        for (int scale = 0; scale < SCALES; ++scale)
            to[scale] = slot_tokens[slot] == NOWHERE ? 0.0f : to_float(*cached_scale(from, slot_rows[slot], scale * SCALE_GROUP));
    };
    const auto store_scales = [&](float* to, const float (&from)[SCALES]) {
        if (thread >= TILE_KEYS) return;
        for (int scale = 0; scale < SCALES; ++scale) to[thread * SCALES + scale] = from[scale];
    };
";

/// Arrays of a tile whose keys are not turned.
pub(super) const PLAIN_TILES: &str = r"
    Factor* const value_tile = query_tile + TILE_ROWS * HEAD_DIM;  // [TILE_KEYS][HEAD_DIM]
    Factor* const key_tile = value_tile + TILE_KEYS * HEAD_DIM;
    Cached* const cached_values = reinterpret_cast<Cached*>(key_tile + TILE_KEYS * HEAD_DIM);  // [TILE_KEYS][ROW_BYTES]
    Cached* const cached_keys = cached_values + TILE_KEYS * ROW_BYTES;
$SCALES
";

/// Those of one whose keys are.
pub(super) const TURNED_TILES: &str = r"
    Factor* const query_rests = query_tile + TILE_ROWS * HEAD_DIM;  // what rounding took from it
    Factor* const value_tile = query_rests + TILE_ROWS * HEAD_DIM;  // [TILE_KEYS][HEAD_DIM]
    Factor* const key_tile = value_tile + TILE_KEYS * HEAD_DIM;     // turned
    Factor* const key_rests = key_tile + TILE_KEYS * HEAD_DIM;      // what rounding took from them
    Cached* const cached_values = reinterpret_cast<Cached*>(key_rests + TILE_KEYS * HEAD_DIM);  // [TILE_KEYS][ROW_BYTES]
    Cached* const cached_keys = cached_values + TILE_KEYS * ROW_BYTES;
$SCALES
";

pub(super) const COPY: &str = r"
    // A thread copies the same pieces of every tile, and makes factors of what it copied.
    const auto copy = [&](Cached* to, const Cached* from, int tile_index) {
        if (tile_index < tiles)
            for (int item = thread; item < TILE_KEYS * ROW_PIECES; item += THREADS) {
                const int slot = tile_index % 3 * TILE_KEYS + item / ROW_PIECES, byte = item % ROW_PIECES * 16;
                copy_async_16(&to[item * 16], cached_numbers(from, slot_rows[slot]) + byte, slot_tokens[slot] != NOWHERE);
            }
        copy_async_commit();
    };
    const auto convert = [&](Factor* to, const Cached* from) {
        for (int item = thread; item < TILE_KEYS * ROW_PIECES; item += THREADS) {
            const int key = item / ROW_PIECES, first = item % ROW_PIECES * (16 / BITS);
            const Numbers numbers = *reinterpret_cast<const Numbers*>(&from[item * 16]);
            for (int piece = 0; piece < 16 / BITS; ++piece) {
                Pairs pairs;
                for (int pair = 0; pair < 4; ++pair)
                    pairs.at[pair] = factors(numbers.words[(piece * 4 + pair) * BITS / 16], pair % (16 / BITS));
                *reinterpret_cast<Pairs*>(&to[piece_at(key, first + piece)]) = pairs;
            }
        }
    };
$LOOK_UP
";

pub(super) const PLAIN_FIRST_COPIES: &str = r"
    copy(cached_keys, keys, 0);
$FIRST_KEYS
    copy(cached_values, values, 0);
$FIRST_VALUES
";

pub(super) const TURNED_FIRST_COPY: &str = r"
    copy(cached_keys, keys, 0);
$FIRST_KEYS
";

pub(super) const PLAIN_THERE: &str = r"
        copy_async_wait<0>();
        sync_block();  // the tile before has been read
        convert(key_tile, cached_keys);
$STORE_KEYS
        convert(value_tile, cached_values);
$STORE_VALUES
        copy(cached_keys, keys, tile_index + 1);
$NEXT_KEYS
        copy(cached_values, values, tile_index + 1);
$NEXT_VALUES
        sync_block();  // the tile is there
";

pub(super) const TURNED_THERE: &str = r"
$STORE_KEYS
        copy_async_wait<0>();
        sync_block();  // the tile's keys are there, and the tile before has been read
        copy(cached_values, values, tile_index);
$THESE_VALUES
";

/// Loads a pair of pieces that turn together.
pub(super) const LOAD_PIECES: &str = r"
            const Pairs low_pairs = load_eight(&cached_keys[key * ROW_BYTES + piece * BITS]);
            const Pairs high_pairs = load_eight(&cached_keys[key * ROW_BYTES + (piece + PIECES / 2) * BITS]);
$PIECE_SCALES
";

const PIECE_SCALES: &str = r"
            const float low_scale = key_scales[key * SCALES + piece * 8 / SCALE_GROUP];
            const float high_scale = key_scales[key * SCALES + (piece * 8 + HALF) / SCALE_GROUP];
";

/// Elements of them.
pub(super) const LOW: &str = "element_of(low_pairs, e)$LOW_SCALE";
pub(super) const HIGH: &str = "element_of(high_pairs, e)$HIGH_SCALE";

pub(super) const NEXT_KEYS: &str = r"
        copy(cached_keys, keys, tile_index + 1);
$NEXT_KEYS
";

pub(super) const VALUES_THERE: &str = r"
$STORE_VALUES
        copy_async_wait<1>();
        convert(value_tile, cached_values);
        sync_block();  // the tile's values are there
";

/// Products with keys that have scales and are not turned.
pub(super) const SCALED_PRODUCTS: &str = r"
        float score[BANDS][TILE_KEYS / 8][4] = {};
#pragma unroll
        for (int scale = 0; scale < SCALES; ++scale) {
            float sum[BANDS][TILE_KEYS / 8][4] = {};
#pragma unroll
            for (int i = scale * (STEPS / SCALES); i < (scale + 1) * (STEPS / SCALES); ++i) {
                unsigned query[BANDS][4];
                for (int band = 0; band < BANDS; ++band)
                    load_matrix_x4(query[band], &query_tile[band * 16 * HEAD_DIM + (query_at ^ i * 16)]);
#pragma unroll
                for (int n = 0; n < TILE_KEYS / 16; ++n) {
                    unsigned key[4];
                    load_matrix_x4(key, &key_tile[n * 16 * HEAD_DIM + (key_at ^ i * 16)]);
                    for (int band = 0; band < BANDS; ++band) {
                        mma_16x8x16<Factor>(sum[band][2 * n], query[band], {key[0], key[1]});
                        mma_16x8x16<Factor>(sum[band][2 * n + 1], query[band], {key[2], key[3]});
                    }
                }
            }
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 2; ++e) {
                    const float its = key_scales[(n * 8 + across * 2 + e) * SCALES + scale];
                    for (int r = 0; r < ROWS; ++r) score[r / 2][n][r % 2 * 2 + e] += sum[r / 2][n][r % 2 * 2 + e] * its;
                }
        }
";

/// Weights times values that have scales.
pub(super) const SCALED_OUTPUT: &str = r"
            float exact[BANDS][4][2];
            for (int band = 0; band < BANDS; ++band)
                for (int part = 0; part < 4; ++part)
                    for (int e = 0; e < 2; ++e) {
                        const int r = band * 2 + part % 2;
                        exact[band][part][e] = exp2_fast(score[band][2 * k + part / 2][part % 2 * 2 + e] - top[r]);
                        total[r] += exact[band][part][e];
                    }
#pragma unroll
            for (int scale = 0; scale < SCALES; ++scale) {
                // A value's scale becomes part of its weight. Scores are where the product takes its left factor from.
                unsigned weight[BANDS][4]$DECLARE_WEIGHT_REST;
                for (int part = 0; part < 4; ++part) {
                    const float* const its = &value_scales[(k * 16 + part / 2 * 8 + across * 2) * SCALES + scale];
                    for (int band = 0; band < BANDS; ++band) {
                        float scaled[2] = {exact[band][part][0] * its[0], exact[band][part][1] * its[SCALES]};
                        weight[band][part] = pack<Factor>(scaled[0], scaled[1]);
$KEEP_SCALED_REST
                    }
                }
#pragma unroll
                for (int i = scale * (STEPS / SCALES); i < (scale + 1) * (STEPS / SCALES); ++i) {
                    unsigned value[4];
                    load_matrix_x4_transposed(value, &value_tile[k * 16 * HEAD_DIM + (value_at ^ i * 16)]);
                    for (int band = 0; band < BANDS; ++band) {
                        mma_16x8x16<Factor>(output[band][2 * i], weight[band], {value[0], value[1]});
                        mma_16x8x16<Factor>(output[band][2 * i + 1], weight[band], {value[2], value[3]});
                    }
$REST_SCALED_OUTPUT
                }
            }
";

pub(super) const KEEP_SCALED_REST: &str = r"
                        for (int e = 0; e < 2; ++e) scaled[e] -= to_float(from_float<Factor>(scaled[e]));
                        weight_rest[band][part] = pack<Factor>(scaled[0], scaled[1]);
";

pub(super) const REST_SCALED_OUTPUT: &str = r"
                    for (int band = 0; band < BANDS; ++band) {
                        mma_16x8x16<Factor>(output[band][2 * i], weight_rest[band], {value[0], value[1]});
                        mma_16x8x16<Factor>(output[band][2 * i + 1], weight_rest[band], {value[2], value[3]});
                    }
";
