//! Prefill on tensor cores: attention of the queries of a block, a tile of keys at a time, with a running softmax.
//!
//! Rows are queries of one or more heads of a group, sixteen a warp, so that one copy of the keys serves them all. While
//! a tile is multiplied, the next one is copied and the slots of the one after it are found: nothing waits for a chain
//! of loads. Where kernels rotate, keys are turned in f32 and split, like queries and weights, into what the cache's type
//! holds and the rest; in layers whose cache is rotated they were rounded before, and one product has to do.

use super::dense_row::PIECE_AT;
use super::functions::{CACHE_ROW, Shape};
use super::tune::Tune;
use super::visible::{Phase, Visible};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::tuning::{AttendPrefill, Tuning};
use crate::{KvType, LayerPlan, Ranking};

/// Rows of a warp.
const WARP_ROWS: usize = 16;
/// Rows of a block of threads at most, unless something else is chosen.
const MOST_ROWS: usize = 128;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttendTiles {
    shape: Shape,
    visible: Visible,
    tuning: AttendPrefill,
}

impl AttendTiles {
    /// The kernel, for caches that tensor cores take as they are.
    pub(crate) fn new(shape: Shape, kind: &LayerPlan) -> Option<Self> {
        let visible = Visible::new(kind);
        // Fewer keys where more has to be held of each, so that all of it fits into registers.
        let keys = match visible {
            Visible::All => 64,
            Visible::Pruned { .. } if visible.blends() => 16,
            Visible::Pruned { .. } => 32,
        };
        let tuning = AttendPrefill { rows: MOST_ROWS, keys };
        (shape.kv() != KvType::F32).then_some(Self { shape, visible, tuning })
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

    fn threads(&self) -> usize {
        (self.tile_heads() * self.tile_queries()).div_ceil(WARP_ROWS).max(2) * 32
    }

    /// Tiles in shared memory: two of values; of keys two, or one as it was cached, one turned, and its rest.
    fn shared_tiles(&self) -> usize {
        if self.visible.rotates() { 5 } else { 4 }
    }

    /// Blocks of threads for `rows` rows.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        let tiles = rows.div_ceil(self.query_block()) * self.tiles_of_block();
        [tiles as u32, (self.shape.query_heads() / self.tile_heads()) as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (what, family) = match self.visible {
            Visible::All => (
                "Prefill of a dense layer: causal attention over every key, rotated before it was cached.",
                Family::Dense,
            ),
            Visible::Pruned { .. } => (
                "Prefill: attention over the kept blocks, the sinks and the window, each key in exactly one of the three.",
                Family::Attend,
            ),
        };
        let heading = format!(
            "{what}\nA block of threads takes TILE_QUERIES queries of TILE_HEADS heads, a warp 16 of these rows."
        );
        let origin = if family == Family::Dense { "dense" } else { "attend" };
        let mut writer = Writer::new(&heading, &format!("{pipeline}, {origin}"));
        self.shape.constants(&mut writer);
        self.visible.constants(&mut writer, self.shape);
        if family == Family::Dense {
            writer.constant("QUERY_BLOCK", self.query_block(), "queries of a tile");
        }
        let turns = (self.tuning.keys * self.shape.head_dim() / 16).div_ceil(self.threads());
        writer
            .constant("TILE_QUERIES", self.tile_queries(), "queries of a tile")
            .constant("TILE_HEADS", self.tile_heads(), "heads of a group in a tile: they share the keys")
            .constant("TILES", self.tiles_of_block(), "tiles of a query block")
            .constant("TILE_KEYS", self.tuning.keys, "keys of a tile")
            .constant("THREADS", self.threads(), "threads of a block")
            .constant("PIECES", self.shape.head_dim() / 8, "16-byte pieces of a row")
            .constant("STEPS", self.shape.head_dim() / 16, "products along a row")
            .constant("TURNS", turns, "pairs of pieces of a key tile that a thread turns")
            .constant("NOWHERE", "0x3fffffff", "token of an empty slot: after every query")
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
        writer.text(CACHE_ROW);
        if self.visible.rotates() {
            writer.text(PIECE);
        }
        writer.text(PIECE_AT);
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
        writer.text(&text(&self.slots()));
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
            shared_bytes: (self.shared_tiles() * self.tuning.keys * self.shape.head_dim() * 2) as u32,
        }
    }

    /// How many tiles there are of each kind, and where a thread finds its slot of one.
    fn slots(&self) -> String {
        let declared = self.visible.declare("position");
        let Visible::Pruned { .. } = self.visible else {
            return format!(
                "    const int tiles = last / TILE_KEYS + 1;\n{}",
                FIND.replace("$DECLARED", &declared).replace("$CASES\n", ALL_CASES.trim_start_matches('\n'))
            );
        };
        let place = |text: String| text.replace("\n                ", "\n            ");
        let (counts, upcoming, listed) = if self.visible.has_list() {
            (
                LISTED_TILES,
                UPCOMING,
                format!(
                    "{LISTED_CASE}{}\n        }} else ",
                    place(self.visible.place_listed(Phase::Prefill, "position", "slot"))
                ),
            )
        } else {
            ("    constexpr int listed_tiles = 0;\n", "", "        ".to_owned())
        };
        let cases = OTHER_CASES
            .replace("$LISTED", listed.trim_start_matches('\n'))
            .replace("$SINK", &place(self.visible.place_sink(Phase::Prefill, "position", "at")))
            .replace("$RECENT", &place(self.visible.place_recent("position", "at")));
        let counts = COUNTS.replace("$LISTED_TILES\n", counts.trim_start_matches('\n'));
        let find = FIND.replace("$DECLARED", &declared).replace("$CASES\n", cases.trim_start_matches('\n'));
        format!("{counts}{upcoming}{find}")
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
        text.replace("$POSITIONS\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => "    SHARED(int, slot_positions, 3 * TILE_KEYS);\n".to_owned(),
            (true, true) => "    SHARED(int, slot_positions, 3 * TILE_KEYS);  // packed\n    SHARED(int, slot_extended, 3 * TILE_KEYS);   // drawn together\n".to_owned(),
        })
        .replace("$KEY_TILES", if turns { "turned, their rest, and as cached" } else { "two tiles" })
        .replace("$TURN\n", &either(turns, TURN_QUERY, ""))
        .replace("$DECLARE_REST", if turns { ", rest[STEPS][4]" } else { "" })
        .replace("$KEEP_REST\n", &either(turns, KEEP_REST, ""))
        .replace("$NEXT\n", &either(listed, "        upcoming = entry(tile_index + 1);\n", ""))
        .replace("$AFTER_NEXT\n", &either(listed, "        upcoming = entry(tile_index + 3);\n", ""))
        .replace("$KEEP_POSITION\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => "        next_position = token == NOWHERE ? 0 : position;\n".to_owned(),
            (true, true) => "        next_position = token == NOWHERE ? 0 : position;\n        next_extended = token == NOWHERE ? 0 : extended;\n".to_owned(),
        })
        .replace("$DECLARE_POSITION", match (turns, blends) {
            (false, _) => "",
            (true, false) => ", next_position = 0",
            (true, true) => ", next_position = 0, next_extended = 0",
        })
        .replace("$STORE_POSITION\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => "        slot_positions[slot] = next_position;\n".to_owned(),
            (true, true) => "        slot_positions[slot] = next_position;\n        slot_extended[slot] = next_extended;\n".to_owned(),
        })
        .replace("$COPIED_KEYS", if turns { "2" } else { "tile_index % 2" })
        .replace("$CURRENT_KEYS", if turns { "key_tiles" } else { "key_tiles + tile_index % 2 * TILE_KEYS * HEAD_DIM" })
        .replace("$ANGLES\n", &match (turns, blends) {
            (false, _) => String::new(),
            (true, false) => either(true, ANGLES, ""),
            (true, true) => either(true, BLENDED_ANGLES, ""),
        })
        .replace("$TURN_KEYS\n", &either(turns, TURN_KEYS, ""))
        .replace("$REST_PRODUCTS\n", &either(turns, REST_PRODUCTS, ""))
        .replace("$WHOLE\n", &either(pruned, WHOLE_PRUNED, WHOLE_ALL))
        .replace("$SEEN", if pruned { "in_window ? distance >= 0 && distance < WINDOW : distance >= WINDOW" } else { "distance >= 0" })
        .replace("$DECLARE_WEIGHT_REST", if turns { ", weight_rest[4]" } else { "" })
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

const PIECE: &str = r"
// Eight neighbouring elements of a row: sixteen bytes.
struct alignas(16) Piece {
    Cached at[8];
};
";

const PLACE: &str = r"
    SHARED_DYNAMIC(Cached, value_tiles);                                  // two tiles of [TILE_KEYS][HEAD_DIM]
    Cached* const key_tiles = value_tiles + 2 * TILE_KEYS * HEAD_DIM;     // $KEY_TILES
    SHARED(int, slot_tokens, 3 * TILE_KEYS);                              // of the tile at hand and of the next two
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

const QUERIES: &str = r"
    // Row i of the tile is query i % TILE_QUERIES of head i / TILE_QUERIES. A lane has two rows of its warp's sixteen.
    int own_query[2], own_head[2], own_position[2];
    for (int r = 0; r < 2; ++r) {
        const int row = warp * 16 + down + 8 * r;
        own_query[r] = row % TILE_QUERIES;
        own_head[r] = first_head + row / TILE_QUERIES;
        own_position[r] = row < TILE_HEADS * TILE_QUERIES && own_query[r] < queries_here ? tile_first + own_query[r] : -1;
    }
    unsigned query[STEPS][4]$DECLARE_REST;
    for (int i = 0; i < STEPS / 2; ++i)
        for (int part = 0; part < 4; ++part) {
            const int r = part % 2, element = i * 16 + part / 2 * 8 + across * 2;
            float x[2] = {}, y[2] = {};
            if (own_position[r] >= 0) {
                const unsigned long long row = first_row + first + own_query[r];
                const Activation* const from = &qkv[row * QKV_ROW + own_head[r] * HEAD_DIM + element];
                for (int e = 0; e < 2; ++e) {
                    x[e] = to_float(from[e]) * QUERY_SCALE;
                    y[e] = to_float(from[HALF + e]) * QUERY_SCALE;
$TURN
                }
            }
            query[i][part] = pack<Cached>(x[0], x[1]);
            query[i + STEPS / 2][part] = pack<Cached>(y[0], y[1]);
$KEEP_REST
        }
";

const TURN_QUERY: &str = r"
                    rotate(x[e], y[e], rope_table[(own_position[r] - origin) * HALF + element + e]);
";

const KEEP_REST: &str = r"
            for (int e = 0; e < 2; ++e) {
                x[e] -= to_float(from_float<Cached>(x[e]));
                y[e] -= to_float(from_float<Cached>(y[e]));
            }
            rest[i][part] = pack<Cached>(x[0], x[1]);
            rest[i + STEPS / 2][part] = pack<Cached>(y[0], y[1]);
";

const LISTED_TILES: &str = "    const int listed_tiles = (count * BLOCK + TILE_KEYS - 1) / TILE_KEYS;\n";

const COUNTS: &str = r"
$LISTED_TILES
    // A sink leaves its group for the window's where it is near.
    const int sinks = max(0, min(SINK, last - WINDOW + 1)), sink_tiles = (sinks + TILE_KEYS - 1) / TILE_KEYS;
    const int window_first = max(0, tile_first - WINDOW + 1);
    const int tiles = listed_tiles + sink_tiles + (last - window_first) / TILE_KEYS + 1;
";

const UPCOMING: &str = r"
    // The entry of the list that a thread's slot of a tile belongs to.
    const auto entry = [&](int tile_index) {
        const int slot = tile_index * TILE_KEYS + thread;
        return thread < TILE_KEYS && slot < count * BLOCK ? list[slot / BLOCK] : 0;
    };
    int upcoming = entry(0);
";

const FIND: &str = r"
    // Finds a thread's slot of a tile; what it loads is not waited for before it is stored.
    int next_token = NOWHERE$DECLARE_POSITION;
    unsigned next_row = 0;
    const auto find = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        int token = NOWHERE$DECLARED;
$CASES
        next_token = token;
        next_row = cache_row(page_table, token == NOWHERE ? 0 : token, kv_head);
$KEEP_POSITION
    };
    const auto store = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        const int slot = tile_index % 3 * TILE_KEYS + thread;
        slot_tokens[slot] = next_token;
        slot_rows[slot] = next_row;
$STORE_POSITION
    };
";

const ALL_CASES: &str = r"
        const int at = tile_index * TILE_KEYS + thread;
        if (at <= last) token = at;
";

const LISTED_CASE: &str = r"
        if (tile_index < listed_tiles) {
            const int slot = tile_index * TILE_KEYS + thread;
            if (slot < count * BLOCK) token = upcoming + slot % BLOCK;
            if (token < SINK || token > last) token = NOWHERE;  // sinks are seen as sinks";

const OTHER_CASES: &str = r"
$LISTEDif (tile_index < listed_tiles + sink_tiles) {
            const int at = (tile_index - listed_tiles) * TILE_KEYS + thread;
            if (at < sinks) token = at;$SINK
        } else {
            const int at = window_first + (tile_index - listed_tiles - sink_tiles) * TILE_KEYS + thread;
            if (at <= last) token = at;$RECENT
        }
";

const PIPELINE: &str = r"
    const auto copy = [&](int tile_index) {
        if (tile_index < tiles)
            for (int item = thread; item < TILE_KEYS * PIECES; item += THREADS) {
                const int key = item / PIECES, piece = item % PIECES, slot = tile_index % 3 * TILE_KEYS + key;
                const unsigned long long from = static_cast<unsigned long long>(slot_rows[slot]) * HEAD_DIM + piece * 8;
                const bool there = slot_tokens[slot] != NOWHERE;
                const int to = piece_at(key, piece);
                copy_async_16(&key_tiles[$COPIED_KEYS * TILE_KEYS * HEAD_DIM + to], &keys[from], there);
                copy_async_16(&value_tiles[tile_index % 2 * TILE_KEYS * HEAD_DIM + to], &values[from], there);
            }
        copy_async_commit();
    };
    for (int tile_index = 0; tile_index < 2; ++tile_index) {
        find(tile_index);
        store(tile_index);
$NEXT
    }
    sync_block();
    copy(0);

    float output[HEAD_DIM / 8][4] = {}, total[2] = {}, largest[2] = {LOWEST, LOWEST};
    for (int tile_index = 0; tile_index < tiles; ++tile_index) {
        const int slots = tile_index % 3 * TILE_KEYS;
$ANGLES
        copy_async_wait<0>();
        sync_block();  // the tile is there, and the one before has been read
$TURN_KEYS
        copy(tile_index + 1);
        find(tile_index + 2);
$AFTER_NEXT
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
            turned[0] = *reinterpret_cast<const Piece*>(&key_tiles[2 * TILE_KEYS * HEAD_DIM + low]);
            turned[1] = *reinterpret_cast<const Piece*>(&key_tiles[2 * TILE_KEYS * HEAD_DIM + high]);
            for (int e = 0; e < 8; ++e) {
                float x = to_float(turned[0].at[e]), y = to_float(turned[1].at[e]);
                rotate(x, y, angles[turn][e]);
                turned[0].at[e] = from_float<Cached>(x);
                turned[1].at[e] = from_float<Cached>(y);
                rests[0].at[e] = from_float<Cached>(x - to_float(turned[0].at[e]));
                rests[1].at[e] = from_float<Cached>(y - to_float(turned[1].at[e]));
            }
            *reinterpret_cast<Piece*>(&key_tiles[low]) = turned[0];
            *reinterpret_cast<Piece*>(&key_tiles[high]) = turned[1];
            *reinterpret_cast<Piece*>(&key_tiles[TILE_KEYS * HEAD_DIM + low]) = rests[0];
            *reinterpret_cast<Piece*>(&key_tiles[TILE_KEYS * HEAD_DIM + high]) = rests[1];
        }
        sync_block();
";

const SCORES: &str = r"
        const Cached* const key_tile = $CURRENT_KEYS;
        float score[TILE_KEYS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS; ++i)
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 16; ++n) {
                unsigned key[4];
                const int at = piece_at(n * 16 + lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2);
                load_matrix_x4(key, &key_tile[at]);
                mma_16x8x16<Cached>(score[2 * n], query[i], {key[0], key[1]});
                mma_16x8x16<Cached>(score[2 * n + 1], query[i], {key[2], key[3]});
$REST_PRODUCTS
            }
$WHOLE
        float top[2] = {largest[0], largest[1]};
        for (int n = 0; n < TILE_KEYS / 8; ++n)
            for (int e = 0; e < 2; ++e) {
                if (!whole) {
                    const int token = slot_tokens[slots + n * 8 + across * 2 + e];
                    for (int r = 0; r < 2; ++r) {
                        const int distance = own_position[r] - token;
                        if (!($SEEN)) score[n][2 * r + e] = LOWEST;
                    }
                }
                for (int r = 0; r < 2; ++r) top[r] = max(top[r], score[n][2 * r + e]);
            }
        for (int r = 0; r < 2; ++r) {
            top[r] = max(top[r], shuffle_xor(top[r], 1));
            top[r] = max(top[r], shuffle_xor(top[r], 2));
        }
        // Weights of before are scaled to the new maximum, which soon stays what it is.
        if (ballot(top[0] > largest[0] || top[1] > largest[1]) != 0)
            for (int r = 0; r < 2; ++r) {
                const float scale = exp2_fast(largest[r] - top[r]);
                largest[r] = top[r];
                total[r] *= scale;
                for (int n = 0; n < HEAD_DIM / 8; ++n)
                    for (int e = 0; e < 2; ++e) output[n][2 * r + e] *= scale;
            }
";

const REST_PRODUCTS: &str = r"
                mma_16x8x16<Cached>(score[2 * n], rest[i], {key[0], key[1]});
                mma_16x8x16<Cached>(score[2 * n + 1], rest[i], {key[2], key[3]});
                load_matrix_x4(key, &key_tile[TILE_KEYS * HEAD_DIM + at]);
                mma_16x8x16<Cached>(score[2 * n], query[i], {key[0], key[1]});
                mma_16x8x16<Cached>(score[2 * n + 1], query[i], {key[2], key[3]});
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
        const Cached* const value_tile = value_tiles + tile_index % 2 * TILE_KEYS * HEAD_DIM;
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
            // Scores are where the product takes its left factor from.
            unsigned weight[4]$DECLARE_WEIGHT_REST;
            for (int part = 0; part < 4; ++part) {
                const int r = part % 2;
                float exact[2];
                for (int e = 0; e < 2; ++e) {
                    const float x = score[2 * k + part / 2][2 * r + e];
                    exact[e] = whole || x > LOWEST ? exp2_fast(x - top[r]) : 0.0f;
                    total[r] += exact[e];
                }
                weight[part] = pack<Cached>(exact[0], exact[1]);
$KEEP_WEIGHT_REST
            }
#pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                unsigned value[4];
                load_matrix_x4_transposed(value, &value_tile[piece_at(k * 16 + lane % 16, 2 * i + lane / 16)]);
                mma_16x8x16<Cached>(output[2 * i], weight, {value[0], value[1]});
                mma_16x8x16<Cached>(output[2 * i + 1], weight, {value[2], value[3]});
$REST_OUTPUT
            }
        }
        store(tile_index + 2);
    }
    for (int r = 0; r < 2; ++r) {
        total[r] += shuffle_xor(total[r], 1);
        total[r] += shuffle_xor(total[r], 2);
        if (own_position[r] < 0) continue;
        const float factor = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;  // a row without a visible key is zero
        const unsigned long long row = first_row + first + own_query[r];
        Activation* const to = &out[(row * QUERY_HEADS + own_head[r]) * HEAD_DIM + across * 2];
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            for (int e = 0; e < 2; ++e) to[n * 8 + e] = from_float<Activation>(output[n][2 * r + e] * factor);
    }
}
";

const KEEP_WEIGHT_REST: &str = r"
                for (int e = 0; e < 2; ++e) exact[e] -= to_float(from_float<Cached>(exact[e]));
                weight_rest[part] = pack<Cached>(exact[0], exact[1]);
";

const REST_OUTPUT: &str = r"
                mma_16x8x16<Cached>(output[2 * i], weight_rest, {value[0], value[1]});
                mma_16x8x16<Cached>(output[2 * i + 1], weight_rest, {value[2], value[3]});
";
