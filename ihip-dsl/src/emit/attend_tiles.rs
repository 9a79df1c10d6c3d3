//! Prefill on tensor cores: attention of the queries of a block, a tile of keys at a time, with a running softmax.
//!
//! Rows are queries of one or more heads of a group, so that one copy of the keys serves them all. A warp has two bands
//! of sixteen: a fragment of keys, once loaded from shared memory, is multiplied with both, which is what tensor cores
//! are fast enough to wait for. Queries stay in shared memory, and registers for the output. While a tile is multiplied,
//! the next one is copied and the slots of the one after it are found: nothing waits for a chain of loads. Where kernels
//! rotate, keys are turned in f32 and split, like queries and weights, into what the factors' type holds and the rest; in
//! layers whose cache is rotated they were rounded before, and one product has to do.

use super::cached;
use super::dense_row::PIECE_AT;
use super::functions::{CACHE_ROW, Shape};
use super::slots;
use super::tune::Tune;
use super::turned_tile as turned;
use super::visible::{Phase, Visible};
use super::{Kernel, query_tile};
use super::{factor, factor_tile};
use crate::tuning::{AttendPrefill, Tuning};
use crate::{LayerPlan, Ranking};

/// Rows of a product.
const BAND: usize = 16;
/// Bands of a warp at most.
const MOST_BANDS: usize = 2;
/// Warps of a block of threads at least: one for each quarter of a multiprocessor, where there are rows enough.
const WARPS: usize = 4;
/// Rows of a block of threads at most, unless something else is chosen: two blocks share a multiprocessor, and take
/// exponentials in turns.
const MOST_ROWS: usize = WARPS * MOST_BANDS * BAND;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttendTiles {
    shape: Shape,
    visible: Visible,
    tuning: AttendPrefill,
}

impl AttendTiles {
    /// The kernel, for caches that tensor cores take, as they are or converted, and heads of a power of two.
    pub(crate) fn new(shape: Shape, kind: &LayerPlan) -> Option<Self> {
        let visible = Visible::new(kind);
        // Fewer keys where more has to be held of each, so that all of it fits into registers.
        let keys = match visible.extends() {
            true => 16,
            false if visible.rotates() || shape.head_dim() > 64 => 32,
            false => 64,
        };
        let tuning = AttendPrefill { rows: MOST_ROWS, keys };
        let fits = shape.kv().factor().is_some() && matches!(shape.head_dim(), 32 | 64 | 128);
        fits.then_some(Self { shape, visible, tuning })
    }

    fn query_block(&self) -> usize {
        match self.visible {
            Visible::All => self.tuning.rows,
            Visible::Pruned { query_block, .. } => query_block,
        }
    }

    fn tile_queries(&self) -> usize {
        self.query_block().min(self.tuning.rows)
    }

    /// Heads of a group in a tile: those that share lists and for which there is room.
    fn tile_heads(&self) -> usize {
        let most = if self.visible.ranking() == Ranking::Each { 1 } else { self.tuning.rows / self.tile_queries() };
        (1..=most).rev().find(|heads| self.shape.group().is_multiple_of(*heads)).unwrap_or(1)
    }

    fn tiles_of_block(&self) -> usize {
        self.query_block().div_ceil(self.tile_queries())
    }

    /// Bands of a warp: fewer where every quarter of a multiprocessor would not have a warp otherwise.
    fn bands(&self) -> usize {
        (self.tile_heads() * self.tile_queries() / (WARPS * BAND)).clamp(1, MOST_BANDS)
    }

    fn warps(&self) -> usize {
        (self.tile_heads() * self.tile_queries()).div_ceil(self.bands() * BAND).max(2)
    }

    fn threads(&self) -> usize {
        self.warps() * 32
    }

    fn tile_rows(&self) -> usize {
        self.warps() * self.bands() * BAND
    }

    /// Bytes of shared memory: queries and two tiles of keys and values; or queries with their rest, one tile of values,
    /// and of keys one as it was cached, one turned, and its rest. What is converted is there once, beside what it is made
    /// of. As chosen here they fit any GPU's multiprocessor.
    fn shared_bytes(&self) -> usize {
        let keys = self.tuning.keys;
        let rows = match (self.visible.rotates(), self.converts()) {
            (false, false) => self.tile_rows() + 4 * keys,
            (true, false) => 2 * self.tile_rows() + 4 * keys,
            (false, true) => self.tile_rows() + 2 * keys,
            (true, true) => 2 * self.tile_rows() + 3 * keys,
        };
        let cached = if self.converts() { 2 * factor_tile::bytes(self.shape, keys) } else { 0 };
        rows * self.shape.head_dim() * 2 + cached
    }

    /// Whether keys and values are converted before they are multiplied.
    fn converts(&self) -> bool {
        factor::converts(self.shape)
    }

    /// Blocks of threads for `rows` rows.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        let tiles = rows.div_ceil(self.query_block()) * self.tiles_of_block();
        [tiles as u32, (self.shape.query_heads() / self.tile_heads()) as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let takes =
            "A block of threads takes TILE_QUERIES queries of TILE_HEADS heads, a warp 16 of these rows a band.";
        let mut writer = query_tile::begin(pipeline, self.shape, &self.visible, takes, self.query_block());
        writer
            .constant("TILE_QUERIES", self.tile_queries(), "queries of a tile")
            .constant("TILE_HEADS", self.tile_heads(), "heads of a group in a tile: they share the keys")
            .constant("TILES", self.tiles_of_block(), "tiles of a query block")
            .constant("TILE_KEYS", self.tuning.keys, "keys of a tile")
            .constant("BANDS", self.bands(), "bands of 16 rows of a warp: a fragment of keys serves them all")
            .constant("TILE_ROWS", self.tile_rows(), "rows of a tile, some of which may stay empty")
            .constant("THREADS", self.threads(), "threads of a block")
            .constant("PIECES", self.shape.head_dim() / 8, "16-byte pieces of a row")
            .constant("STEPS", self.shape.head_dim() / 16, "products along a row")
            .constant("NOWHERE", "0x3fffffff", "token of an empty slot: after every query")
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
        if self.visible.rotates() {
            let turns = (self.tuning.keys * self.shape.head_dim() / 16).div_ceil(self.threads());
            writer.constant("TURNS", turns, "pairs of pieces of a key tile that a thread turns");
        }
        writer.text(CACHE_ROW);
        factor::define(&mut writer, self.shape);
        if self.converts() {
            factor_tile::define(&mut writer, self.shape, self.visible.rotates());
        }
        writer.text(PIECE).text(PIECE_AT);
        self.visible.functions(&mut writer);
        writer.text(&query_tile::entry(name, &self.visible));
        let text = |text: &str| self.adapt(text);
        writer.more(&text(PLACE));
        query_tile::place(&mut writer, &self.visible);
        writer.text(&text(QUERIES));
        writer.text(&slots::find(&self.visible, 3));
        writer.text(&text(PIPELINE));
        let scaled = cached::scaled(self.shape);
        let products = if scaled && !self.visible.rotates() { factor_tile::SCALED_PRODUCTS } else { PRODUCTS };
        writer.more(&text(products)).more(&text(SCORES));
        writer.more(&text(OUTPUT));
        Kernel {
            name: name.to_owned(),
            family: query_tile::family(&self.visible),
            text: writer.finish(),
            arguments: query_tile::arguments(&self.visible, self.shape),
            threads: self.threads() as u32,
            shared_bytes: self.shared_bytes() as u32,
        }
    }

    /// Fills in what depends on which keys are seen and on whether they are turned.
    fn adapt(&self, text: &str) -> String {
        let turns = self.visible.rotates();
        let blends = self.visible.blends();
        let listed = self.visible.has_list();
        let pruned = self.visible != Visible::All;
        let converts = self.converts();
        let either = |condition: bool, yes: &str, no: &str| {
            let piece = if condition { yes } else { no };
            piece.trim_start_matches('\n').to_owned()
        };
        // Of tiles that are turned, as they lie in the cache or converted, and of others.
        let which = |turned: [&str; 2], plain: [&str; 2]| {
            let [as_it_is, converted] = if turns { turned } else { plain };
            either(converts, converted, as_it_is)
        };
        let scaled = cached::scaled(self.shape);
        let text = text
            .replace(
                "$TILES\n",
                &which([turned::TURNED_TILES, factor_tile::TURNED_TILES], [PLAIN_TILES, factor_tile::PLAIN_TILES]),
            )
            .replace("$COPY\n", &either(converts, factor_tile::COPY, COPY))
            .replace(
                "$FIRST_COPIES\n",
                &which(
                    [turned::TURNED_FIRST_COPY, factor_tile::TURNED_FIRST_COPY],
                    [PLAIN_FIRST_COPIES, factor_tile::PLAIN_FIRST_COPIES],
                ),
            )
            .replace(
                "$TILE_THERE\n",
                &which([turned::TURNED_THERE, factor_tile::TURNED_THERE], [PLAIN_THERE, factor_tile::PLAIN_THERE]),
            )
            .replace("$TURN_KEYS\n", &either(turns, turned::TURN_KEYS, ""))
            .replace("$LOAD_PIECES\n", &either(converts, factor_tile::LOAD_PIECES, turned::LOAD_PIECES))
            .replace("$LOW", if converts { factor_tile::LOW } else { "to_float(turned[0].at[e])" })
            .replace("$HIGH", if converts { factor_tile::HIGH } else { "to_float(turned[1].at[e])" })
            .replace(
                "$COPY_NEXT_KEYS\n",
                &either(converts, factor_tile::NEXT_KEYS, "        copy(cached_tile, keys, tile_index + 1);\n"),
            )
            .replace("$VALUES_THERE\n", &which([turned::VALUES_THERE, factor_tile::VALUES_THERE], ["", ""]))
            .replace("$ADD_VALUES\n", &either(scaled, factor_tile::SCALED_OUTPUT, ADD_VALUES))
            .replace("$KEEP_SCALED_REST\n", &either(turns, factor_tile::KEEP_SCALED_REST, ""))
            .replace("$REST_SCALED_OUTPUT\n", &either(turns, factor_tile::REST_SCALED_OUTPUT, ""));
        factor_tile::adapt(self.shape, &text)
        .replace("$POSITIONS\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => "    SHARED(int, slot_positions, 3 * TILE_KEYS);\n".to_owned(),
            (true, true) => "    SHARED(int, slot_positions, 3 * TILE_KEYS);  // packed\n    SHARED(int, slot_extended, 3 * TILE_KEYS);   // drawn together\n".to_owned(),
        })
        .replace("$TURN\n", &either(turns, turned::TURN_QUERY, ""))
        .replace("$DECLARE_RESTS", if turns { ", rests[2]" } else { "" })
        .replace("$SPLIT\n", &either(turns, turned::SPLIT_QUERY, ""))
        .replace("$STORE_RESTS\n", &either(turns, turned::STORE_QUERY_RESTS, ""))
        .replace("$NEXT\n", &either(listed, "        upcoming = entry(tile_index + 1);\n", ""))
        .replace("$AFTER_NEXT\n", &either(listed, "        upcoming = entry(tile_index + 3);\n", ""))
        .replace("$ANGLES\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => either(true, turned::ANGLES, ""),
            (true, true) => either(true, turned::BLENDED_ANGLES, ""),
        })
        .replace("$DECLARE_QUERY_REST", if turns { ", query_rest[BANDS][4]" } else { "" })
        .replace("$LOAD_QUERY_REST\n", &either(turns, turned::LOAD_QUERY_REST, ""))
        .replace("$REST_PRODUCTS\n", &either(turns, turned::REST_PRODUCTS, ""))
        .replace("$WHOLE\n", &either(pruned, WHOLE_PRUNED, WHOLE_ALL))
        .replace("$SEEN", if pruned { "in_window ? distance >= 0 && distance < WINDOW : distance >= WINDOW" } else { "distance >= 0" })
        .replace("$DECLARE_WEIGHT_REST", if turns { ", weight_rest[BANDS][4]" } else { "" })
        .replace("$KEEP_WEIGHT_REST\n", &either(turns, turned::KEEP_WEIGHT_REST, ""))
        .replace("$REST_OUTPUT\n", &either(turns, turned::REST_OUTPUT, ""))
    }
}

impl Tune for AttendTiles {
    fn stem(&self, pipeline: &str) -> String {
        self.visible.stem(pipeline, Phase::Prefill, self.shape)
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::AttendPrefill(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        // Where heads do not fill the rows, fewer are the same kernel.
        let rows_and_keys = |choice: &Self| (choice.tile_heads() * choice.tile_queries(), choice.tuning.keys);
        let (mut choices, mut known) = (vec![self.tuning], vec![rows_and_keys(self)]);
        for rows in [64, 128, 192, 256] {
            for keys in [16, 32, 64] {
                let choice = Self { tuning: AttendPrefill { rows, keys }, ..self.clone() };
                // A thread finds a slot of a tile.
                if keys <= choice.threads() && !known.contains(&rows_and_keys(&choice)) {
                    known.push(rows_and_keys(&choice));
                    choices.push(choice.tuning);
                }
            }
        }
        choices.into_iter().map(Tuning::AttendPrefill).collect()
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::AttendPrefill(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

pub(super) const PIECE: &str = r"
// Eight neighbouring elements of a row: sixteen bytes.
struct alignas(16) Piece {
    Factor at[8];
};
";

const PLACE: &str = r"
    SHARED_DYNAMIC(Factor, query_tile);   // [TILE_ROWS][HEAD_DIM]
$TILES
    SHARED(int, slot_tokens, 3 * TILE_KEYS);   // of the tile at hand and of the next two
$POSITIONS
    SHARED(unsigned, slot_rows, 3 * TILE_KEYS);

    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, across = lane % 4, down = lane / 4;
";

const PLAIN_TILES: &str = r"
    Factor* const value_tiles = query_tile + TILE_ROWS * HEAD_DIM;        // two of [TILE_KEYS][HEAD_DIM]
    Factor* const key_tiles = value_tiles + 2 * TILE_KEYS * HEAD_DIM;     // two
";

const QUERIES: &str = r"
    // Row i of the tile is query i % TILE_QUERIES of head i / TILE_QUERIES.
    for (int item = thread; item < TILE_ROWS * PIECES / 2; item += THREADS) {
        const int row = item / (PIECES / 2), piece = item % (PIECES / 2), query = row % TILE_QUERIES;
        const bool there = row < TILE_HEADS * TILE_QUERIES && query < queries_here;
        Piece pieces[2]$DECLARE_RESTS;
        for (int e = 0; e < 8; ++e) {
            float x = 0.0f, y = 0.0f;
            if (there) {
                const unsigned long long from = static_cast<unsigned long long>(first_row + first + query) * QKV_ROW;
                const int element = piece * 8 + e, of_head = (first_head + row / TILE_QUERIES) * HEAD_DIM + element;
                x = to_float(qkv[from + of_head]) * QUERY_SCALE;
                y = to_float(qkv[from + of_head + HALF]) * QUERY_SCALE;
$TURN
            }
            pieces[0].at[e] = from_float<Factor>(x);
            pieces[1].at[e] = from_float<Factor>(y);
$SPLIT
        }
        const int low = piece_at(row, piece), high = piece_at(row, piece + PIECES / 2);
        *reinterpret_cast<Piece*>(&query_tile[low]) = pieces[0];
        *reinterpret_cast<Piece*>(&query_tile[high]) = pieces[1];
$STORE_RESTS
    }
    // A lane has ROWS rows of its warp's, 8 apart: two of each band.
    constexpr int ROWS = 2 * BANDS;
    int own_position[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp * (BANDS * 16) + down + 8 * r, query = row % TILE_QUERIES;
        own_position[r] = row < TILE_HEADS * TILE_QUERIES && query < queries_here ? tile_first + query : -1;
    }
";

const PIPELINE: &str = r"
$COPY
    for (int tile_index = 0; tile_index < 2; ++tile_index) {
        find(tile_index);
        store(tile_index);
$NEXT
    }
    sync_block();
$FIRST_COPIES

    // Where a lane finds its row of the first fragment of a tile. That of the i-th along a row lies at the exclusive or
    // with i * 16, that of other rows multiples of 16 rows behind it.
    const int query_at = piece_at(warp * (BANDS * 16) + lane % 16, lane / 16);
    const int key_at = piece_at(lane % 8 + lane / 16 * 8, lane / 8 % 2), value_at = piece_at(lane % 16, lane / 16);

    float output[BANDS][HEAD_DIM / 8][4] = {}, total[ROWS] = {}, largest[ROWS];
    for (int r = 0; r < ROWS; ++r) largest[r] = LOWEST;
    for (int tile_index = 0; tile_index < tiles; ++tile_index) {
        const int slots = tile_index % 3 * TILE_KEYS;
$ANGLES
$TILE_THERE
$TURN_KEYS
        find(tile_index + 2);
$AFTER_NEXT
";

const COPY: &str = r"
    // A thread copies the same piece of every so many keys.
    const int own_key = thread / PIECES, own_piece = thread % PIECES;
    const auto copy = [&](Factor* to, const Cached* from, int tile_index) {
        if (tile_index < tiles)
#pragma unroll 2
            for (int key = own_key; key < TILE_KEYS; key += THREADS / PIECES) {
                const int slot = tile_index % 3 * TILE_KEYS + key;
                const unsigned long long row = static_cast<unsigned long long>(slot_rows[slot]) * HEAD_DIM;
                copy_async_16(&to[piece_at(key, own_piece)], &from[row + own_piece * 8], slot_tokens[slot] != NOWHERE);
            }
        copy_async_commit();
    };
";

const PLAIN_FIRST_COPIES: &str = r"
    copy(key_tiles, keys, 0);
    copy(value_tiles, values, 0);
";

const PLAIN_THERE: &str = r"
        const int current = tile_index % 2 * TILE_KEYS * HEAD_DIM, other = TILE_KEYS * HEAD_DIM - current;
        const Factor *const key_tile = key_tiles + current, *const value_tile = value_tiles + current;
        copy_async_wait<0>();
        sync_block();  // the tile is there, and the one before has been read
        copy(key_tiles + other, keys, tile_index + 1);
        copy(value_tiles + other, values, tile_index + 1);
";

const PRODUCTS: &str = r"
        float score[BANDS][TILE_KEYS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            unsigned query[BANDS][4]$DECLARE_QUERY_REST;
            for (int band = 0; band < BANDS; ++band) {
                const int at = band * 16 * HEAD_DIM + (query_at ^ i * 16);
                load_matrix_x4(query[band], &query_tile[at]);
$LOAD_QUERY_REST
            }
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 16; ++n) {
                const int at = n * 16 * HEAD_DIM + (key_at ^ i * 16);
                unsigned key[4];
                load_matrix_x4(key, &key_tile[at]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(score[band][2 * n], query[band], {key[0], key[1]});
                    mma_16x8x16<Factor>(score[band][2 * n + 1], query[band], {key[2], key[3]});
                }
$REST_PRODUCTS
            }
        }
";

const SCORES: &str = r"
$WHOLE
        if (!whole)
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 2; ++e) {
                    const int token = slot_tokens[slots + n * 8 + across * 2 + e];
                    for (int r = 0; r < ROWS; ++r) {
                        const int distance = own_position[r] - token;
                        if (!($SEEN)) score[r / 2][n][r % 2 * 2 + e] = LOWEST;
                    }
                }
        float top[ROWS];
        bool rises = false;
        for (int r = 0; r < ROWS; ++r) {
            top[r] = largest[r];
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 2; ++e) top[r] = max(top[r], score[r / 2][n][r % 2 * 2 + e]);
            top[r] = max(top[r], shuffle_xor(top[r], 1));
            top[r] = max(top[r], shuffle_xor(top[r], 2));
            rises = rises || top[r] > largest[r];
        }
        // Weights of before are scaled to the new maximum, which soon stays what it is.
        if (ballot(rises) != 0)
            for (int r = 0; r < ROWS; ++r) {
                const float scale = exp2_fast(largest[r] - top[r]);
                largest[r] = top[r];
                total[r] *= scale;
                for (int n = 0; n < HEAD_DIM / 8; ++n)
                    for (int e = 0; e < 2; ++e) output[r / 2][n][r % 2 * 2 + e] *= scale;
            }
        // A row that has seen no key yet: what is below every score weighs nothing.
        for (int r = 0; r < ROWS; ++r) top[r] = top[r] > LOWEST ? top[r] : 0.0f;
";

const WHOLE_PRUNED: &str = r"
        const bool in_window = tile_index >= listed_tiles + sink_tiles;
        // Slots are ascending: the outer ones tell whether every row sees the whole tile.
        const int farthest = slot_tokens[slots], nearest = slot_tokens[slots + TILE_KEYS - 1];
        const bool whole = in_window ? farthest > last - WINDOW && nearest <= tile_first
                                     : farthest != NOWHERE && nearest <= tile_first - WINDOW;
";

const WHOLE_ALL: &str = r"
        const bool whole = tile_index * TILE_KEYS + TILE_KEYS - 1 <= tile_first;
";

const OUTPUT: &str = r"
$VALUES_THERE
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
$ADD_VALUES
        }
        store(tile_index + 2);
    }
    for (int r = 0; r < ROWS; ++r) {
        total[r] += shuffle_xor(total[r], 1);
        total[r] += shuffle_xor(total[r], 2);
        if (own_position[r] < 0) continue;
        const float factor = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;  // a row without a visible key is zero
        const int head = first_head + (warp * (BANDS * 16) + down + 8 * r) / TILE_QUERIES;
        const unsigned long long row = first_row + own_position[r] - start;
        Activation* const to = &out[(row * QUERY_HEADS + head) * HEAD_DIM + across * 2];
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            for (int e = 0; e < 2; ++e) to[n * 8 + e] = from_float<Activation>(output[r / 2][n][r % 2 * 2 + e] * factor);
    }
}
";

const ADD_VALUES: &str = r"
            // Scores are where the product takes its left factor from.
            unsigned weight[BANDS][4]$DECLARE_WEIGHT_REST;
            for (int band = 0; band < BANDS; ++band)
                for (int part = 0; part < 4; ++part) {
                    const int r = band * 2 + part % 2;
                    float exact[2];
                    for (int e = 0; e < 2; ++e) {
                        exact[e] = exp2_fast(score[band][2 * k + part / 2][part % 2 * 2 + e] - top[r]);
                        total[r] += exact[e];
                    }
                    weight[band][part] = pack<Factor>(exact[0], exact[1]);
$KEEP_WEIGHT_REST
                }
#pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                unsigned value[4];
                load_matrix_x4_transposed(value, &value_tile[k * 16 * HEAD_DIM + (value_at ^ i * 16)]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(output[band][2 * i], weight[band], {value[0], value[1]});
                    mma_16x8x16<Factor>(output[band][2 * i + 1], weight[band], {value[2], value[3]});
                }
$REST_OUTPUT
            }
";
