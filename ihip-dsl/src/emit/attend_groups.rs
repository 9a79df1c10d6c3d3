//! Prefill on Hopper: the same attention as [`super::attend_tiles`] by products of four warps together.
//!
//! Such a product runs by itself and takes keys and values from shared memory, so that a warp's registers hold two stages
//! of the work: while the keys of a tile are multiplied, the values of the tile before are too, and the keys of the next
//! are turned. Tensor cores wait for exponentials only where both groups take them at a time.

use super::attend_tiles::PIECE;
use super::cached;
use super::functions::{CACHE_ROW, Shape};
use super::visible::{Phase, Visible};
use super::{Kernel, hopper, query_tile, slots};
use super::{factor, factor_groups};
use crate::{LayerPlan, Ranking};

/// Rows of a product.
const GROUP_ROWS: usize = 64;
/// Threads of a group: four warps.
const GROUP_THREADS: usize = 128;
/// Groups of a block of threads: three where registers hold it, which wait for one another less often than two.
const DENSE_GROUPS: usize = 3;
const PRUNED_GROUPS: usize = 2;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttendGroups {
    shape: Shape,
    visible: Visible,
}

impl AttendGroups {
    /// The kernel, where tensor cores take caches as they are or converted, no number has a scale, and keys have one
    /// position at most.
    pub(crate) fn new(shape: Shape, kind: &LayerPlan) -> Option<Self> {
        let attend = Self { shape, visible: Visible::new(kind) };
        let factors = shape.kv().factor().is_some() && !cached::scaled(shape);
        let fits = factors && matches!(shape.head_dim(), 64 | 128) && !attend.visible.blends();
        fits.then_some(attend)
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        format!("{}_sm_90a", self.visible.stem(pipeline, Phase::Prefill, self.shape))
    }

    fn groups(&self) -> usize {
        match self.visible {
            Visible::All => DENSE_GROUPS,
            Visible::Pruned { .. } => (self.tile_heads() * self.tile_queries()).div_ceil(GROUP_ROWS),
        }
    }

    fn rows(&self) -> usize {
        self.groups() * GROUP_ROWS
    }

    fn threads(&self) -> usize {
        self.groups() * GROUP_THREADS
    }

    fn query_block(&self) -> usize {
        match self.visible {
            Visible::All => DENSE_GROUPS * GROUP_ROWS,
            Visible::Pruned { query_block, .. } => query_block,
        }
    }

    fn tile_queries(&self) -> usize {
        match self.visible {
            Visible::All => self.query_block(),
            Visible::Pruned { .. } => self.query_block().min(PRUNED_GROUPS * GROUP_ROWS),
        }
    }

    /// Heads of a group in a tile: those that share lists and for which there is room.
    fn tile_heads(&self) -> usize {
        if self.visible == Visible::All || self.visible.ranking() == Ranking::Each {
            return 1;
        }
        let most = PRUNED_GROUPS * GROUP_ROWS / self.tile_queries();
        (1..=most).rev().find(|heads| self.shape.group().is_multiple_of(*heads)).unwrap_or(1)
    }

    fn tiles_of_block(&self) -> usize {
        self.query_block().div_ceil(self.tile_queries())
    }

    /// Keys of a tile: fewer where each takes three times the room, and where three groups share the registers.
    fn tile_keys(&self) -> usize {
        match self.visible {
            Visible::All => 64,
            Visible::Pruned { .. } if self.visible.rotates() => 32 * self.groups(),
            Visible::Pruned { .. } if self.converts() => 64,
            Visible::Pruned { .. } => 128,
        }
    }

    /// Whether keys and values are converted before they are multiplied.
    fn converts(&self) -> bool {
        factor::converts(self.shape)
    }

    /// Rows in shared memory: queries and two tiles of keys and values; or queries with their rest, two tiles of values,
    /// two of keys as they were cached, and two turned, with their rests. Beside what is converted are two tiles of each as they
    /// were cached, in half the room.
    fn shared_rows(&self) -> usize {
        match (self.visible.rotates(), self.converts()) {
            (false, false) => self.rows() + 4 * self.tile_keys(),
            (false, true) => self.rows() + 6 * self.tile_keys(),
            (true, _) => 2 * self.rows() + 8 * self.tile_keys(),
        }
    }

    /// Blocks of threads for `rows` rows.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        let tiles = rows.div_ceil(self.query_block()) * self.tiles_of_block();
        [tiles as u32, (self.shape.query_heads() / self.tile_heads()) as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let takes = "For sm_90a alone. A block of threads takes TILE_QUERIES queries of TILE_HEADS heads, four warps 64 of these rows.";
        let mut writer = query_tile::begin(pipeline, self.shape, &self.visible, takes, self.query_block());
        let head_dim = self.shape.head_dim();
        writer
            .constant("TILE_QUERIES", self.tile_queries(), "queries of a tile")
            .constant("TILE_HEADS", self.tile_heads(), "heads of a group in a tile: they share the keys")
            .constant("TILES", self.tiles_of_block(), "tiles of a query block")
            .constant("TILE_KEYS", self.tile_keys(), "keys of a tile")
            .constant("TILE_ROWS", self.rows(), "rows of a tile, some of which may stay empty")
            .constant("THREADS", self.threads(), "threads of a block")
            .constant("PIECES", head_dim / 8, "16-byte pieces of a row")
            .constant("STEPS", head_dim / 16, "products along a row")
            .constant("NOWHERE", "0x3fffffff", "token of an empty slot: after every query")
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
        if self.visible.rotates() {
            let turns = self.tile_keys() * head_dim / 16 / self.threads();
            writer.constant("TURNS", turns, "pairs of pieces of a key tile that a thread turns");
        }
        writer.text(CACHE_ROW);
        factor::define(&mut writer, self.shape);
        if self.converts() {
            writer.constant("ROW_PIECES", head_dim / 16, "16-byte pieces of a row's numbers");
            factor::pieces(&mut writer);
            factor::eights(&mut writer);
        }
        writer.text(PIECE);
        self.visible.functions(&mut writer);
        writer.text(&hopper::functions(
            self.shape.kv().factor().unwrap_or(self.shape.kv()),
            &[self.tile_keys(), head_dim],
        ));
        writer.text(&query_tile::entry(name, &self.visible));
        writer.more(&self.adapt(PLACE));
        query_tile::place(&mut writer, &self.visible);
        writer.text(&slots::find(&self.visible, 4));
        for part in [COPIES, QUERIES, PRODUCTS, WEIGHTS, LOOP] {
            writer.text(&self.adapt(part));
        }
        Kernel {
            name: name.to_owned(),
            family: query_tile::family(&self.visible),
            text: writer.finish(),
            arguments: query_tile::arguments(&self.visible, self.shape),
            threads: self.threads() as u32,
            shared_bytes: (self.shared_rows() * head_dim * 2 + 1024) as u32,
        }
    }

    /// Fills in what depends on which keys are seen and on whether they are turned.
    fn adapt(&self, text: &str) -> String {
        let turns = self.visible.rotates();
        let listed = self.visible.has_list();
        let pruned = self.visible != Visible::All;
        let converts = self.converts();
        // What is worked on in shared memory is copied one tile earlier.
        let ahead = turns || converts;
        let either = |condition: bool, yes: &str, no: &str| {
            let piece = if condition { yes } else { no };
            piece.trim_start_matches('\n').to_owned()
        };
        text.replace("$POSITIONS\n", &either(turns, "    SHARED(int, slot_positions, 4 * TILE_KEYS);\n", ""))
            .replace("$TILES\n", &either(turns, TURNED_TILES, PLAIN_TILES))
            .replace("$CACHED_TILES\n", &either(converts, factor_groups::TILES, if turns { CACHED_TILES } else { "" }))
            .replace("$TURN_KEYS\n", &either(turns, TURN_KEYS, ""))
            .replace("$COPY\n", &either(converts, factor_groups::COPY, COPY))
            .replace("$CONVERT_KEYS\n", &either(turns, "", factor_groups::CONVERT_KEYS))
            .replace("$LOAD_PIECES\n", &either(converts, factor_groups::LOAD_PIECES, LOAD_PIECES))
            .replace("$LOW", if converts { "element_of(low_pairs, e)" } else { "to_float(turned[0].at[e])" })
            .replace("$HIGH", if converts { "element_of(high_pairs, e)" } else { "to_float(turned[1].at[e])" })
            .replace("$FIND_FIRST\n", &either(listed, "        upcoming = entry(tile_index + 1);\n", ""))
            .replace("$FIND_AFTER\n", &either(listed, "        upcoming = entry(tile_index + 4);\n", ""))
            .replace("$COPY_FIRST\n", &either(ahead, AHEAD_COPY_FIRST, PLAIN_COPY_FIRST))
            .replace("$COPY_FIRST_VALUES\n", &either(converts, "    copy(cached_values, values, 0);\n", ""))
            .replace("$LOOK_UP_FIRST\n", &either(turns, "    look_up(0);\n", ""))
            .replace("$COPY_NEXT\n", &either(ahead, AHEAD_COPY_NEXT, PLAIN_COPY_NEXT))
            .replace("$COPY_VALUES\n", &either(converts, factor_groups::COPY_VALUES, COPY_VALUES))
            .replace("$TURN\n", &either(turns, TURN_QUERY, ""))
            .replace("$DECLARE_RESTS", if turns { ", rests[2]" } else { "" })
            .replace("$SPLIT\n", &either(turns, SPLIT_QUERY, ""))
            .replace("$STORE_RESTS\n", &either(turns, STORE_QUERY_RESTS, ""))
            .replace("$KEY_TILE", if turns { "4" } else { "2" })
            .replace("$REST_PRODUCTS\n", &either(turns, REST_PRODUCTS, ""))
            .replace("$DECLARE_WEIGHT_RESTS", if turns { ", weight_rest[TILE_KEYS / 16][4]" } else { "" })
            .replace("$REST_VALUES\n", &either(turns, REST_VALUES, ""))
            .replace("$WHOLE\n", &either(pruned, WHOLE_PRUNED, WHOLE_ALL))
            .replace(
                "$SEEN",
                if pruned {
                    "in_window ? distance >= 0 && distance < WINDOW : distance >= WINDOW"
                } else {
                    "distance >= 0"
                },
            )
            .replace("$KEEP_REST\n", &either(turns, KEEP_REST, ""))
            .replace("$TURN_FIRST\n", &either(ahead, TURN_FIRST, ""))
            .replace("$LOOK_UP\n", &either(turns, "        look_up(tile_index + 1);\n", ""))
            .replace("$TURN_SECOND\n", &either(ahead, "    $PREPARE(1);\n", ""))
            .replace("$TURN_NEXT\n", &either(ahead, "        $PREPARE(tile_index + 1);\n", ""))
            .replace("$CONVERT_FIRST_VALUES\n", &either(converts, "    convert_values(0);\n", ""))
            .replace("$CONVERT_VALUES\n", &either(converts, "        convert_values(tile_index);\n", ""))
            .replace("$PREPARE", if turns { "turn_keys" } else { "convert_keys" })
            .replace("$CACHED_TILE", if converts { "CACHED_TILE" } else { "TILE" })
    }
}

const PLACE: &str = r"
    SHARED_DYNAMIC(Factor, unaligned);
    SHARED(int, slot_tokens, 4 * TILE_KEYS);  // of the tile at hand and of the next three
$POSITIONS
    SHARED(unsigned, slot_rows, 4 * TILE_KEYS);
    constexpr int TILE = TILE_KEYS * HEAD_DIM;
    Factor* const query_tile = aligned_1024(unaligned);
$TILES

    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, across = lane % 4, down = lane / 4;
";

const PLAIN_TILES: &str = r"
    Factor* const value_tiles = query_tile + TILE_ROWS * HEAD_DIM;  // two
    Factor* const key_tiles = value_tiles + 2 * TILE;               // two
$CACHED_TILES
";

const TURNED_TILES: &str = r"
    Factor* const query_rests = query_tile + TILE_ROWS * HEAD_DIM;   // what rounding took from it
    Factor* const value_tiles = query_rests + TILE_ROWS * HEAD_DIM;  // two
    Factor* const key_tiles = value_tiles + 2 * TILE;                // two, each with what rounding took from it
$CACHED_TILES
";

const CACHED_TILES: &str = r"
    Factor* const cached_tiles = key_tiles + 4 * TILE;               // two, keys as they were cached
";

const COPIES: &str = r"
$COPY
$TURN_KEYS
    for (int tile_index = 0; tile_index < 3; ++tile_index) {
        find(tile_index);
        store(tile_index);
$FIND_FIRST
    }
    sync_block();
$COPY_FIRST
    copy_async_commit();
";

const COPY: &str = r"
    // A thread copies the same piece of every so many keys.
    const int own_key = thread / PIECES, own_piece = thread % PIECES;
    const auto copy = [&](Factor* to, const Cached* from, int tile_index) {
        if (tile_index >= tiles) return;
        for (int key = own_key; key < TILE_KEYS; key += THREADS / PIECES) {
            const int slot = tile_index % 4 * TILE_KEYS + key;
            const unsigned long long row = static_cast<unsigned long long>(slot_rows[slot]) * HEAD_DIM;
            const bool there = slot_tokens[slot] != NOWHERE;
            copy_async_16(&to[swizzled_at<TILE_KEYS>(key, own_piece)], &from[row + own_piece * 8], there);
        }
    };
";

const PLAIN_COPY_FIRST: &str = "    copy(key_tiles, keys, 0);\n";

const AHEAD_COPY_FIRST: &str = r"
    copy(cached_tiles, keys, 0);
    copy(cached_tiles + $CACHED_TILE, keys, 1);
$COPY_FIRST_VALUES
$LOOK_UP_FIRST
";

const TURN_KEYS: &str = r"
    float2 angles[TURNS][8];
    const auto look_up = [&](int tile_index) {
        if (tile_index >= tiles) return;
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = thread + turn * THREADS, slot = tile_index % 4 * TILE_KEYS + item / (PIECES / 2);
            const int position = slot_positions[slot], element = item % (PIECES / 2) * 8;
            for (int e = 0; e < 8; ++e) angles[turn][e] = rope_table[position * HALF + element + e];
        }
    };
    // Keys are turned to their positions, and split.
    const auto turn_keys = [&](int tile_index) {
        if (tile_index >= tiles) return;
        const auto* const from = cached_tiles + tile_index % 2 * $CACHED_TILE;
        Factor* const to = key_tiles + tile_index % 2 * 2 * TILE;
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = thread + turn * THREADS, key = item / (PIECES / 2), piece = item % (PIECES / 2);
            const int low = swizzled_at<TILE_KEYS>(key, piece), high = swizzled_at<TILE_KEYS>(key, piece + PIECES / 2);
            Piece turned[2], rests[2];
$LOAD_PIECES
            for (int e = 0; e < 8; ++e) {
                float x = $LOW, y = $HIGH;
                rotate(x, y, angles[turn][e]);
                turned[0].at[e] = from_float<Factor>(x);
                turned[1].at[e] = from_float<Factor>(y);
                rests[0].at[e] = from_float<Factor>(x - to_float(turned[0].at[e]));
                rests[1].at[e] = from_float<Factor>(y - to_float(turned[1].at[e]));
            }
            *reinterpret_cast<Piece*>(&to[low]) = turned[0];
            *reinterpret_cast<Piece*>(&to[high]) = turned[1];
            *reinterpret_cast<Piece*>(&to[TILE + low]) = rests[0];
            *reinterpret_cast<Piece*>(&to[TILE + high]) = rests[1];
        }
    };
";

const LOAD_PIECES: &str = r"
            turned[0] = *reinterpret_cast<const Piece*>(&from[low]);
            turned[1] = *reinterpret_cast<const Piece*>(&from[high]);
";

const QUERIES: &str = r"
    // Row i of the tile is query i % TILE_QUERIES of head i / TILE_QUERIES.
    for (int item = thread; item < TILE_ROWS * PIECES / 2; item += THREADS) {
        const int row = item / (PIECES / 2), piece = item % (PIECES / 2), query = row % TILE_QUERIES;
        Piece pieces[2]$DECLARE_RESTS;
        for (int e = 0; e < 8; ++e) {
            float x = 0.0f, y = 0.0f;
            if (row < TILE_HEADS * TILE_QUERIES && query < queries_here) {
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
        const int low = swizzled_at<TILE_ROWS>(row, piece), high = swizzled_at<TILE_ROWS>(row, piece + PIECES / 2);
        *reinterpret_cast<Piece*>(&query_tile[low]) = pieces[0];
        *reinterpret_cast<Piece*>(&query_tile[high]) = pieces[1];
$STORE_RESTS
    }
    // A lane has two rows, 8 apart.
    const int own_row = warp * 16 + down;
    int own_position[2];
    for (int r = 0; r < 2; ++r) {
        const int row = own_row + 8 * r, query = row % TILE_QUERIES;
        own_position[r] = row < TILE_HEADS * TILE_QUERIES && query < queries_here ? tile_first + query : -1;
    }
";

const TURN_QUERY: &str = r"
                rotate(x, y, rope_table[(tile_first + query - origin) * HALF + element]);
";

const SPLIT_QUERY: &str = r"
            rests[0].at[e] = from_float<Factor>(x - to_float(pieces[0].at[e]));
            rests[1].at[e] = from_float<Factor>(y - to_float(pieces[1].at[e]));
";

const STORE_QUERY_RESTS: &str = r"
        *reinterpret_cast<Piece*>(&query_rests[low]) = rests[0];
        *reinterpret_cast<Piece*>(&query_rests[high]) = rests[1];
";

const PRODUCTS: &str = r"
    const unsigned long long query_factor = shared_factor(query_tile + warp / 4 * 64 * 64, 16);
    const unsigned long long key_factor = shared_factor(key_tiles, 16);
    const unsigned long long value_factor = shared_factor(value_tiles, TILE_KEYS * 128);
    float score[TILE_KEYS / 8][4], output[HEAD_DIM / 8][4];
    for (int n = 0; n < HEAD_DIM / 8; ++n)
        for (int e = 0; e < 4; ++e) output[n][e] = 0.0f;
    unsigned weight[TILE_KEYS / 16][4]$DECLARE_WEIGHT_RESTS;
    const auto multiply_keys = [&](int tile_index) {
        const unsigned long long tile = behind(key_factor, tile_index % 2 * $KEY_TILE * TILE);
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            const unsigned long long query = behind(query_factor, i / 4 * TILE_ROWS * 128 + i % 4 * 32);
            const unsigned long long key = behind(tile, i / 4 * TILE_KEYS * 128 + i % 4 * 32);
            multiply_shared(score, query, key, i > 0);
$REST_PRODUCTS
        }
        products_commit();
    };
    const auto add_values = [&](int tile_index) {
        const unsigned long long tile = behind(value_factor, tile_index % 2 * 2 * TILE);
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
            multiply_held(output, weight[k], behind(tile, k * 2048));
$REST_VALUES
        }
        products_commit();
    };
";

const REST_PRODUCTS: &str = r"
            multiply_shared(score, behind(query, 2 * TILE_ROWS * HEAD_DIM), key, true);
            multiply_shared(score, query, behind(key, 2 * TILE), true);
";

const REST_VALUES: &str = r"
            multiply_held(output, weight_rest[k], behind(tile, k * 2048));
";

const WEIGHTS: &str = r"
    float total[2] = {}, largest[2] = {LOWEST, LOWEST}, scale[2];
    bool rises = false;
    // Scores become weights.
    const auto weigh = [&](int tile_index) {
        const int slots = tile_index % 4 * TILE_KEYS;
$WHOLE
        if (!whole)
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 4; ++e) {
                    const int distance = own_position[e / 2] - slot_tokens[slots + n * 8 + across * 2 + e % 2];
                    if (!($SEEN)) score[n][e] = LOWEST;
                }
        float top[2] = {largest[0], largest[1]};
        for (int n = 0; n < TILE_KEYS / 8; ++n)
            for (int e = 0; e < 4; ++e) top[e / 2] = max(top[e / 2], score[n][e]);
        for (int r = 0; r < 2; ++r) {
            top[r] = max(top[r], shuffle_xor(top[r], 1));
            top[r] = max(top[r], shuffle_xor(top[r], 2));
        }
        // The output is scaled to the new maximum, which soon stays what it is, once the values before are added.
        rises = ballot(top[0] > largest[0] || top[1] > largest[1]) != 0;
        for (int r = 0; r < 2; ++r) {
            scale[r] = exp2_fast(largest[r] - top[r]);
            largest[r] = top[r];
            total[r] *= scale[r];
            // A row that has seen no key yet: what is below every score weighs nothing.
            top[r] = top[r] > LOWEST ? top[r] : 0.0f;
        }
        for (int n = 0; n < TILE_KEYS / 8; ++n)
            for (int e = 0; e < 4; ++e) {
                score[n][e] = exp2_fast(score[n][e] - top[e / 2]);
                total[e / 2] += score[n][e];
            }
    };
    // Weights become the left factor of a product, which is held as they are.
    const auto round_weights = [&]() {
        for (int k = 0; k < TILE_KEYS / 16; ++k)
            for (int part = 0; part < 4; ++part) {
                const float *const exact = &score[2 * k + part / 2][part % 2 * 2];
                weight[k][part] = pack<Factor>(exact[0], exact[1]);
$KEEP_REST
            }
    };
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

const KEEP_REST: &str = r"
                weight_rest[k][part] = pack<Factor>(exact[0] - to_float(from_float<Factor>(exact[0])),
                                                    exact[1] - to_float(from_float<Factor>(exact[1])));
";

const TURN_FIRST: &str = r"
    copy_async_wait<0>();
    sync_block();
    $PREPARE(0);
";

const LOOP: &str = r"
    // Waits for the keys of a tile and the values of the one before, starts to copy what follows, and to multiply.
    const auto begin = [&](int tile_index) {
$LOOK_UP
        copy_async_wait<0>();
        fence_products();
        sync_block();
$COPY_NEXT
$COPY_VALUES
        copy_async_commit();
        find(tile_index + 3);
$FIND_AFTER
        products_begin();
        multiply_keys(tile_index);
    };
$TURN_FIRST
    begin(0);
$TURN_SECOND
$CONVERT_FIRST_VALUES
    products_wait<0>();
    weigh(0);
    round_weights();
    store(3);
    for (int tile_index = 1; tile_index < tiles; ++tile_index) {
        begin(tile_index);
        add_values(tile_index - 1);
$TURN_NEXT
$CONVERT_VALUES
        products_wait<1>();
        weigh(tile_index);
        products_wait<0>();
        if (rises)
            for (int n = 0; n < HEAD_DIM / 8; ++n)
                for (int e = 0; e < 4; ++e) output[n][e] *= scale[e / 2];
        round_weights();
        store(tile_index + 3);
    }
    copy_async_wait<0>();
    fence_products();
    sync_block();
    products_begin();
    add_values(tiles - 1);
    products_wait<0>();
    for (int r = 0; r < 2; ++r) {
        total[r] += shuffle_xor(total[r], 1);
        total[r] += shuffle_xor(total[r], 2);
        if (own_position[r] < 0) continue;
        const float factor = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;  // a row without a visible key is zero
        const int head = first_head + (own_row + 8 * r) / TILE_QUERIES;
        const unsigned long long row = first_row + own_position[r] - start;
        Activation* const to = &out[(row * QUERY_HEADS + head) * HEAD_DIM + across * 2];
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            for (int e = 0; e < 2; ++e) to[n * 8 + e] = from_float<Activation>(output[n][2 * r + e] * factor);
    }
}
";

const PLAIN_COPY_NEXT: &str = r"
        copy(key_tiles + (tile_index + 1) % 2 * TILE, keys, tile_index + 1);
";

const AHEAD_COPY_NEXT: &str = r"
        copy(cached_tiles + tile_index % 2 * $CACHED_TILE, keys, tile_index + 2);
";

const COPY_VALUES: &str = r"
        copy(value_tiles + tile_index % 2 * TILE, values, tile_index);
";
