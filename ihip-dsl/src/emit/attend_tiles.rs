//! Prefill on tensor cores: attention of the queries of a block, a tile of keys at a time, with a running softmax.
//!
//! Rows are queries of one or more heads of a group, so that one copy of the keys serves them all. A warp has two bands
//! of sixteen: a fragment of keys, once loaded from shared memory, is multiplied with both, which is what tensor cores
//! are fast enough to wait for. Queries stay in shared memory, and registers for the output. While a tile is multiplied,
//! the next one is copied and the slots of the one after it are found: nothing waits for a chain of loads. Where kernels
//! rotate, keys are turned in f32 and split, like queries and weights, into what the cache's type holds and the rest; in
//! layers whose cache is rotated they were rounded before, and one product has to do.

use super::dense_row::PIECE_AT;
use super::functions::{CACHE_ROW, Shape};
use super::slots;
use super::tune::Tune;
use super::visible::{Phase, Visible};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
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
    /// The kernel, for caches that tensor cores take as they are and heads of a power of two.
    pub(crate) fn new(shape: Shape, kind: &LayerPlan) -> Option<Self> {
        let visible = Visible::new(kind);
        // Fewer keys where more has to be held of each, so that all of it fits into registers.
        let keys = match visible.extends() {
            true => 16,
            false if visible.rotates() || shape.head_dim() > 64 => 32,
            false => 64,
        };
        let tuning = AttendPrefill { rows: MOST_ROWS, keys };
        let fits = shape.kv().is_factor() && matches!(shape.head_dim(), 32 | 64 | 128);
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

    /// Rows in shared memory: queries and two tiles of keys and values; or queries with their rest, one tile of values,
    /// and of keys one as it was cached, one turned, and its rest. As chosen here they fit any GPU's multiprocessor.
    fn shared_rows(&self) -> usize {
        match self.visible.rotates() {
            false => self.tile_rows() + 4 * self.tuning.keys,
            true => 2 * self.tile_rows() + 4 * self.tuning.keys,
        }
    }

    /// Blocks of threads for `rows` rows.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        let tiles = rows.div_ceil(self.query_block()) * self.tiles_of_block();
        [tiles as u32, (self.shape.query_heads() / self.tile_heads()) as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (what, family, origin) = emitted(&self.visible);
        let heading = format!(
            "{what}\nA block of threads takes TILE_QUERIES queries of TILE_HEADS heads, a warp 16 of these rows a band."
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, {origin}"));
        self.shape.constants(&mut writer);
        self.visible.constants(&mut writer, self.shape);
        if family == Family::Dense {
            writer.constant("QUERY_BLOCK", self.query_block(), "queries of a tile");
        }
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
        writer.text(CACHE_ROW).text(PIECE).text(PIECE_AT);
        self.visible.functions(&mut writer);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const Cached* __restrict__ values, const unsigned* __restrict__ page_table,\n   {} Activation* out) {{",
            self.visible.parameters()
        ));
        let text = |text: &str| self.adapt(text);
        writer.more(&text(PLACE));
        if self.visible.rotates() {
            writer.more("    const int first_position = start + block * QUERY_BLOCK;");
        }
        writer.more(&self.visible.origin(Phase::Prefill));
        writer.text(&text(QUERIES));
        writer.text(&slots::find(&self.visible, 3));
        writer.text(&text(PIPELINE));
        writer.more(&text(SCORES));
        writer.more(&text(OUTPUT));
        let mut arguments = self.visible.arguments(self.shape);
        arguments.push(Argument { name: "out", kind: ArgumentKind::Output(self.shape.activation.element()) });
        Kernel {
            name: name.to_owned(),
            family,
            text: writer.finish(),
            arguments,
            threads: self.threads() as u32,
            shared_bytes: (self.shared_rows() * self.shape.head_dim() * 2) as u32,
        }
    }

    /// Fills in what depends on which keys are seen and on whether they are turned.
    fn adapt(&self, text: &str) -> String {
        let turns = self.visible.rotates();
        let blends = self.visible.blends();
        let listed = self.visible.has_list();
        let pruned = self.visible != Visible::All;
        let either = |condition: bool, yes: &str, no: &str| {
            let piece = if condition { yes } else { no };
            piece.trim_start_matches('\n').to_owned()
        };
        text.replace("$TILES\n", &either(turns, TURNED_TILES, PLAIN_TILES))
        .replace("$POSITIONS\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => "    SHARED(int, slot_positions, 3 * TILE_KEYS);\n".to_owned(),
            (true, true) => "    SHARED(int, slot_positions, 3 * TILE_KEYS);  // packed\n    SHARED(int, slot_extended, 3 * TILE_KEYS);   // drawn together\n".to_owned(),
        })
        .replace("$TURN\n", &either(turns, TURN_QUERY, ""))
        .replace("$DECLARE_RESTS", if turns { ", rests[2]" } else { "" })
        .replace("$SPLIT\n", &either(turns, SPLIT_QUERY, ""))
        .replace("$STORE_RESTS\n", &either(turns, STORE_QUERY_RESTS, ""))
        .replace("$NEXT\n", &either(listed, "        upcoming = entry(tile_index + 1);\n", ""))
        .replace("$AFTER_NEXT\n", &either(listed, "        upcoming = entry(tile_index + 3);\n", ""))
        .replace("$FIRST_COPIES\n", &either(turns, TURNED_FIRST_COPY, PLAIN_FIRST_COPIES))
        .replace("$TILE_THERE\n", &either(turns, TURNED_THERE, PLAIN_THERE))
        .replace("$ANGLES\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => either(true, ANGLES, ""),
            (true, true) => either(true, BLENDED_ANGLES, ""),
        })
        .replace("$TURN_KEYS\n", &either(turns, TURN_KEYS, ""))
        .replace("$DECLARE_QUERY_REST", if turns { ", query_rest[BANDS][4]" } else { "" })
        .replace("$LOAD_QUERY_REST\n", &either(turns, LOAD_QUERY_REST, ""))
        .replace("$REST_PRODUCTS\n", &either(turns, REST_PRODUCTS, ""))
        .replace("$WHOLE\n", &either(pruned, WHOLE_PRUNED, WHOLE_ALL))
        .replace("$SEEN", if pruned { "in_window ? distance >= 0 && distance < WINDOW : distance >= WINDOW" } else { "distance >= 0" })
        .replace("$VALUES_THERE\n", &either(turns, VALUES_THERE, ""))
        .replace("$DECLARE_WEIGHT_REST", if turns { ", weight_rest[BANDS][4]" } else { "" })
        .replace("$KEEP_WEIGHT_REST\n", &either(turns, KEEP_WEIGHT_REST, ""))
        .replace("$REST_OUTPUT\n", &either(turns, REST_OUTPUT, ""))
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

/// The first line of a kernel, its family, and where it comes from.
pub(super) const fn emitted(visible: &Visible) -> (&'static str, Family, &'static str) {
    match visible {
        Visible::All => (
            "Prefill of a dense layer: causal attention over every key, rotated before it was cached.",
            Family::Dense,
            "dense",
        ),
        Visible::Pruned { .. } => (
            "Prefill: attention over the kept blocks, the sinks and the window, each key in exactly one of the three.",
            Family::Attend,
            "attend",
        ),
    }
}

pub(super) const PIECE: &str = r"
// Eight neighbouring elements of a row: sixteen bytes.
struct alignas(16) Piece {
    Cached at[8];
};
";

const PLACE: &str = r"
    SHARED_DYNAMIC(Cached, query_tile);   // [TILE_ROWS][HEAD_DIM]
$TILES
    SHARED(int, slot_tokens, 3 * TILE_KEYS);   // of the tile at hand and of the next two
$POSITIONS
    SHARED(unsigned, slot_rows, 3 * TILE_KEYS);

    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, across = lane % 4, down = lane / 4;
    // Tiles with many keys come last in a call: they are started first.
    const int tile_of_call = gridDim.x - 1 - blockIdx.x, block = tile_of_call / TILES;
    const int first = block * QUERY_BLOCK + tile_of_call % TILES * TILE_QUERIES;
    const int first_head = blockIdx.y * TILE_HEADS, kv_head = first_head / GROUP;
    if (first >= rows) return;
    const int queries_here = min(min(TILE_QUERIES, block * QUERY_BLOCK + QUERY_BLOCK - first), rows - first);
    const int tile_first = start + first, last = tile_first + queries_here - 1;
";

const PLAIN_TILES: &str = r"
    Cached* const value_tiles = query_tile + TILE_ROWS * HEAD_DIM;        // two of [TILE_KEYS][HEAD_DIM]
    Cached* const key_tiles = value_tiles + 2 * TILE_KEYS * HEAD_DIM;     // two
";

const TURNED_TILES: &str = r"
    Cached* const query_rests = query_tile + TILE_ROWS * HEAD_DIM;        // what rounding took from it
    Cached* const value_tile = query_rests + TILE_ROWS * HEAD_DIM;        // [TILE_KEYS][HEAD_DIM]
    Cached* const cached_tile = value_tile + TILE_KEYS * HEAD_DIM;        // keys as they were cached
    Cached* const key_tile = cached_tile + TILE_KEYS * HEAD_DIM;          // turned
    Cached* const key_rests = key_tile + TILE_KEYS * HEAD_DIM;            // what rounding took from them
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
            pieces[0].at[e] = from_float<Cached>(x);
            pieces[1].at[e] = from_float<Cached>(y);
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

const TURN_QUERY: &str = r"
                rotate(x, y, rope_table[(tile_first + query - origin) * HALF + element]);
";

const SPLIT_QUERY: &str = r"
            rests[0].at[e] = from_float<Cached>(x - to_float(pieces[0].at[e]));
            rests[1].at[e] = from_float<Cached>(y - to_float(pieces[1].at[e]));
";

const STORE_QUERY_RESTS: &str = r"
        *reinterpret_cast<Piece*>(&query_rests[low]) = rests[0];
        *reinterpret_cast<Piece*>(&query_rests[high]) = rests[1];
";

const PIPELINE: &str = r"
    // A thread copies the same piece of every so many keys.
    const int own_key = thread / PIECES, own_piece = thread % PIECES;
    const auto copy = [&](Cached* to, const Cached* from, int tile_index) {
        if (tile_index < tiles)
#pragma unroll 2
            for (int key = own_key; key < TILE_KEYS; key += THREADS / PIECES) {
                const int slot = tile_index % 3 * TILE_KEYS + key;
                const unsigned long long row = static_cast<unsigned long long>(slot_rows[slot]) * HEAD_DIM;
                copy_async_16(&to[piece_at(key, own_piece)], &from[row + own_piece * 8], slot_tokens[slot] != NOWHERE);
            }
        copy_async_commit();
    };
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

const PLAIN_FIRST_COPIES: &str = r"
    copy(key_tiles, keys, 0);
    copy(value_tiles, values, 0);
";

const TURNED_FIRST_COPY: &str = "    copy(cached_tile, keys, 0);\n";

const PLAIN_THERE: &str = r"
        const int current = tile_index % 2 * TILE_KEYS * HEAD_DIM, other = TILE_KEYS * HEAD_DIM - current;
        const Cached *const key_tile = key_tiles + current, *const value_tile = value_tiles + current;
        copy_async_wait<0>();
        sync_block();  // the tile is there, and the one before has been read
        copy(key_tiles + other, keys, tile_index + 1);
        copy(value_tiles + other, values, tile_index + 1);
";

const TURNED_THERE: &str = r"
        copy_async_wait<0>();
        sync_block();  // the tile's keys are there, and the tile before has been read
        copy(value_tile, values, tile_index);
";

const ANGLES: &str = r"
        float2 angles[TURNS][8];
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = min(thread + turn * THREADS, TILE_KEYS * PIECES / 2 - 1);
            const int position = slot_positions[slots + item / (PIECES / 2)], element = item % (PIECES / 2) * 8;
            for (int e = 0; e < 8; ++e) angles[turn][e] = rope_table[position * HALF + element + e];
        }
";

const BLENDED_ANGLES: &str = r"
        float2 angles[TURNS][8];
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = min(thread + turn * THREADS, TILE_KEYS * PIECES / 2 - 1);
            const int slot = slots + item / (PIECES / 2), element = item % (PIECES / 2) * 8;
            for (int e = 0; e < 8; ++e)
                angles[turn][e] = blend(rope_table[slot_positions[slot] * HALF + element + e],
                                        rope_table[slot_extended[slot] * HALF + element + e]);
        }
";

const TURN_KEYS: &str = r"
        // Keys are turned to their positions, and split.
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = thread + turn * THREADS, key = item / (PIECES / 2), piece = item % (PIECES / 2);
            if (item >= TILE_KEYS * PIECES / 2) break;
            const int low = piece_at(key, piece), high = piece_at(key, piece + PIECES / 2);
            Piece turned[2], rests[2];
            turned[0] = *reinterpret_cast<const Piece*>(&cached_tile[low]);
            turned[1] = *reinterpret_cast<const Piece*>(&cached_tile[high]);
            for (int e = 0; e < 8; ++e) {
                float x = to_float(turned[0].at[e]), y = to_float(turned[1].at[e]);
                rotate(x, y, angles[turn][e]);
                turned[0].at[e] = from_float<Cached>(x);
                turned[1].at[e] = from_float<Cached>(y);
                rests[0].at[e] = from_float<Cached>(x - to_float(turned[0].at[e]));
                rests[1].at[e] = from_float<Cached>(y - to_float(turned[1].at[e]));
            }
            *reinterpret_cast<Piece*>(&key_tile[low]) = turned[0];
            *reinterpret_cast<Piece*>(&key_tile[high]) = turned[1];
            *reinterpret_cast<Piece*>(&key_rests[low]) = rests[0];
            *reinterpret_cast<Piece*>(&key_rests[high]) = rests[1];
        }
        sync_block();
        copy(cached_tile, keys, tile_index + 1);
";

const SCORES: &str = r"
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
                    mma_16x8x16<Cached>(score[band][2 * n], query[band], {key[0], key[1]});
                    mma_16x8x16<Cached>(score[band][2 * n + 1], query[band], {key[2], key[3]});
                }
$REST_PRODUCTS
            }
        }
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

const LOAD_QUERY_REST: &str = r"
                load_matrix_x4(query_rest[band], &query_rests[at]);
";

const REST_PRODUCTS: &str = r"
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Cached>(score[band][2 * n], query_rest[band], {key[0], key[1]});
                    mma_16x8x16<Cached>(score[band][2 * n + 1], query_rest[band], {key[2], key[3]});
                }
                load_matrix_x4(key, &key_rests[at]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Cached>(score[band][2 * n], query[band], {key[0], key[1]});
                    mma_16x8x16<Cached>(score[band][2 * n + 1], query[band], {key[2], key[3]});
                }
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

const VALUES_THERE: &str = r"
        copy_async_wait<1>();
        sync_block();  // the tile's values are there
";

const OUTPUT: &str = r"
$VALUES_THERE
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
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
                    weight[band][part] = pack<Cached>(exact[0], exact[1]);
$KEEP_WEIGHT_REST
                }
#pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                unsigned value[4];
                load_matrix_x4_transposed(value, &value_tile[k * 16 * HEAD_DIM + (value_at ^ i * 16)]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Cached>(output[band][2 * i], weight[band], {value[0], value[1]});
                    mma_16x8x16<Cached>(output[band][2 * i + 1], weight[band], {value[2], value[3]});
                }
$REST_OUTPUT
            }
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

const KEEP_WEIGHT_REST: &str = r"
                    for (int e = 0; e < 2; ++e) exact[e] -= to_float(from_float<Cached>(exact[e]));
                    weight_rest[band][part] = pack<Cached>(exact[0], exact[1]);
";

const REST_OUTPUT: &str = r"
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Cached>(output[band][2 * i], weight_rest[band], {value[0], value[1]});
                    mma_16x8x16<Cached>(output[band][2 * i + 1], weight_rest[band], {value[2], value[3]});
                }
";
