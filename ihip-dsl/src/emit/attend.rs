//! Prefill: attention of a tile of query rows, in f32 from shared memory, with an online softmax in base 2.

use super::cached;
use super::functions::{QUADS, Shape};
use super::tile::Tile;
use super::visible::{Phase, Visible};
use super::{Kernel, query_tile};
use crate::{LayerPlan, Ranking};

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attend {
    shape: Shape,
    visible: Visible,
}

impl Attend {
    pub(crate) fn new(shape: Shape, kind: &LayerPlan) -> Self {
        Self { shape, visible: Visible::new(kind) }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        self.visible.stem(pipeline, Phase::Prefill, self.shape)
    }

    fn query_block(&self) -> usize {
        match self.visible {
            Visible::All => self.tile_rows(),
            Visible::Pruned { query_block, .. } => query_block,
        }
    }

    fn tile_queries(&self) -> usize {
        self.query_block().min(self.tile_rows())
    }

    fn tiles_of_block(&self) -> usize {
        self.query_block().div_ceil(self.tile_queries())
    }

    /// Heads of a group that fill a tile together where a query block alone does not; heads with lists of their own
    /// have no keys to share.
    fn tile_heads(&self) -> usize {
        if self.visible.ranking() == Ranking::Each {
            return 1;
        }
        let fits = |heads: &usize| {
            self.shape.group().is_multiple_of(*heads) && heads * self.tile_queries() <= self.tile_rows()
        };
        (1..=self.shape.group()).rev().find(fits).unwrap_or(1)
    }

    /// Threads across a tile: with 4 × 4 scores each, they make the tile's keys. More where rows are long, as long as each
    /// has whole quads of the output, and the tile fits into the shared memory that every chip has.
    fn across(&self) -> usize {
        if self.shape.head_dim() == 128 { 16 } else { 8 }
    }

    /// Threads down a tile: they make its rows.
    fn down(&self) -> usize {
        if self.shape.head_dim() > 128 { 8 } else { 16 }
    }

    fn threads(&self) -> usize {
        self.across() * self.down()
    }

    fn tile_rows(&self) -> usize {
        self.down() * 4
    }

    fn tile_keys(&self) -> usize {
        self.across() * 4
    }

    fn shared_floats(&self) -> usize {
        (self.tile_rows() + self.tile_keys()) * (self.shape.head_dim() + 4) + self.tile_rows() * (self.tile_keys() + 4)
    }

    /// Blocks of threads for `rows` rows.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        let tiles = rows.div_ceil(self.query_block()) * self.tiles_of_block();
        [tiles as u32, (self.shape.query_heads() / self.tile_heads()) as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let rows = self.tile_rows();
        let takes = match self.visible {
            Visible::All => format!("A block of threads takes {rows} rows of one query head."),
            Visible::Pruned { .. } => format!("A block of threads takes up to {rows} rows of one query block."),
        };
        let mut writer = query_tile::begin(pipeline, self.shape, &self.visible, &takes, rows);
        writer
            .constant("TILE_QUERIES", self.tile_queries(), "queries of a tile")
            .constant("TILE_HEADS", self.tile_heads(), "heads of a group in a tile: they share the keys")
            .constant("TILES", self.tiles_of_block(), "tiles of a query block")
            .constant("TILE_ROWS", rows, "rows of a tile, 4 a thread")
            .constant("TILE_KEYS", self.tile_keys(), "keys of a tile, 4 a thread")
            .constant("ACROSS", self.across(), "threads across a tile")
            .constant("DOWN", self.down(), "threads down a tile")
            .constant("COLUMNS", self.shape.head_dim() / self.across(), "output elements of a row that a thread holds")
            .constant("THREADS", self.threads(), "threads of a block")
            .constant("STRIDE", self.shape.head_dim() + 4, "floats between rows in shared memory: no bank conflicts")
            .constant("WEIGHT_STRIDE", self.tile_keys() + 4, "the same for the weights")
            .constant("NOWHERE", "0x3fffffff", "token of an empty slot: after every query")
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
        writer.text(QUADS);
        cached::rows(&mut writer, self.shape);
        cached::quads(&mut writer, self.shape);
        self.visible.functions(&mut writer);
        writer.text(&query_tile::entry(name, &self.visible));
        writer.more(&PLACE.replace("$POSITIONS", self.visible.position_array()));
        query_tile::place(&mut writer, &self.visible);
        let turn = if self.visible.rotates() {
            "            rotate(x, y, rope_table[(tile_first + query - origin) * HALF + element]);\n"
        } else {
            ""
        };
        writer.text(&QUERIES.replace("$TURN\n", turn));
        writer.text(&self.tiles());
        let tile = |from| Tile {
            from,
            to: "tile",
            rows: ("TILE_KEYS", self.tile_keys()),
            threads: self.threads(),
            shape: self.shape,
            loads: 8,
            indent: 8,
        };
        writer.more(&self.visible.load_keys(&tile("keys")));
        let seen = match self.visible {
            Visible::All => "distance >= 0",
            Visible::Pruned { .. } => "in_window ? distance >= 0 && distance < WINDOW : distance >= WINDOW",
        };
        writer.more(&SCORES.replace("$SEEN", seen));
        writer.more(&tile("values").load_plain());
        writer.more(OUTPUT);
        Kernel {
            name: name.to_owned(),
            family: query_tile::family(&self.visible),
            text: writer.finish(),
            arguments: query_tile::arguments(&self.visible, self.shape),
            threads: self.threads() as u32,
            shared_bytes: (self.shared_floats() * 4) as u32,
        }
    }

    /// Opens the loop over tiles of keys and fills the slots of one.
    fn tiles(&self) -> String {
        let (declared, store) = (self.visible.declare("position"), self.visible.store("position"));
        let (counts, cases) = match self.visible {
            Visible::All => (
                "    const int tiles = last / TILE_KEYS + 1;\n".to_owned(),
                "            const int at = tile_index * TILE_KEYS + thread;\n            if (at <= last) token = at;\n".to_owned(),
            ),
            Visible::Pruned { .. } => {
                let (listed_tiles, listed_case, no_list) = if self.visible.has_list() {
                    (
                        "    const int listed_tiles = (count * BLOCK + TILE_KEYS - 1) / TILE_KEYS;\n".to_owned(),
                        format!(
                            r"            if (tile_index < listed_tiles) {{
                const int slot = tile_index * TILE_KEYS + thread;
                if (slot < count * BLOCK) token = list[slot / BLOCK] + slot % BLOCK;
                if (token < SINK || token > last) token = NOWHERE;  // sinks are seen as sinks{}
            }} else ",
                            self.visible.place_listed(Phase::Prefill, "position", "slot")
                        ),
                        "",
                    )
                } else {
                    ("    constexpr int listed_tiles = 0;\n".to_owned(), String::new(), "            ")
                };
                let counts = format!(
                    r"{listed_tiles}    // A sink leaves its group for the window's where it is near.
    const int sinks = max(0, min(SINK, last - WINDOW + 1)), sink_tiles = (sinks + TILE_KEYS - 1) / TILE_KEYS;
    const int window_first = max(0, tile_first - WINDOW + 1);
    const int tiles = listed_tiles + sink_tiles + (last - window_first) / TILE_KEYS + 1;
"
                );
                let window_position = self.visible.place_recent("position", "at");
                let cases = format!(
                    r"{listed_case}{no_list}if (!in_window) {{
                const int at = (tile_index - listed_tiles) * TILE_KEYS + thread;
                if (at < sinks) token = at;{}
            }} else {{
                const int at = window_first + (tile_index - listed_tiles - sink_tiles) * TILE_KEYS + thread;
                if (at <= last) token = at;{window_position}
            }}
",
                    self.visible.place_sink(Phase::Prefill, "position", "at")
                );
                (counts, cases)
            }
        };
        let in_window = if self.visible == Visible::All {
            ""
        } else {
            "        const bool in_window = tile_index >= listed_tiles + sink_tiles;\n"
        };
        format!(
            r"{counts}
    float output[4][COLUMNS] = {{}}, total[4] = {{}}, largest[4] = {{LOWEST, LOWEST, LOWEST, LOWEST}};
    for (int tile_index = 0; tile_index < tiles; ++tile_index) {{
{in_window}        sync_block();  // the tile before has been read
        if (thread < TILE_KEYS) {{
            int token = NOWHERE{declared};
{cases}            slot_token[thread] = token;
            slot_row[thread] = cache_row(page_table, token == NOWHERE ? 0 : token, kv_head);
{store}        }}
        sync_block();
"
        )
    }
}

const PLACE: &str = r"
    SHARED_DYNAMIC(float, queries);                          // [TILE_ROWS][STRIDE]
    float* const tile = queries + TILE_ROWS * STRIDE;        // [TILE_KEYS][STRIDE]: keys, then values
    float* const weights = tile + TILE_KEYS * STRIDE;        // [TILE_ROWS][WEIGHT_STRIDE]
    SHARED(int, slot_token, TILE_KEYS);
$POSITIONS    SHARED(unsigned, slot_row, TILE_KEYS);

    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, across = thread % ACROSS, down = thread / ACROSS;
";

const QUERIES: &str = r"
    // Row i of the tile is query i % TILE_QUERIES of head i / TILE_QUERIES.
    for (int item = thread; item < TILE_ROWS * HALF; item += THREADS) {
        const int row = item / HALF, element = item % HALF, query = row % TILE_QUERIES;
        float x = 0.0f, y = 0.0f;
        if (row < TILE_HEADS * TILE_QUERIES && query < queries_here) {
            const int head = first_head + row / TILE_QUERIES;
            const Activation* const from =
                &qkv[static_cast<unsigned long long>(first_row + first + query) * QKV_ROW + head * HEAD_DIM + element];
            x = to_float(from[0]) * QUERY_SCALE;
            y = to_float(from[HALF]) * QUERY_SCALE;
$TURN
        }
        queries[row * STRIDE + element] = x;
        queries[row * STRIDE + element + HALF] = y;
    }
    int position[4];
    for (int i = 0; i < 4; ++i) {
        const int row = down + DOWN * i;
        position[i] = row < TILE_HEADS * TILE_QUERIES && row % TILE_QUERIES < queries_here ? tile_first + row % TILE_QUERIES : -1;
    }
";

const SCORES: &str = r"
        sync_block();
        // 4 x 4 scores a thread: rows down + DOWN * i, keys across + ACROSS * j.
        float score[4][4] = {};
#pragma unroll 4
        for (int element = 0; element < HEAD_DIM; element += 4) {
            Quad<float> query[4], key[4];
            for (int i = 0; i < 4; ++i) query[i] = load_quad(&queries[(down + DOWN * i) * STRIDE + element]);
            for (int j = 0; j < 4; ++j) key[j] = load_quad(&tile[(across + ACROSS * j) * STRIDE + element]);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j)
                    for (int e = 0; e < 4; ++e) score[i][j] += query[i].at[e] * key[j].at[e];
        }
        for (int i = 0; i < 4; ++i) {
            float top = largest[i];
            for (int j = 0; j < 4; ++j) {
                const int distance = position[i] - slot_token[across + ACROSS * j];
                if (!($SEEN)) score[i][j] = LOWEST;
                top = max(top, score[i][j]);
            }
            for (int mask = ACROSS / 2; mask > 0; mask /= 2) top = max(top, shuffle_xor(top, mask));
            // Weights of before are scaled to the new maximum. A row that has seen no key yet has nothing to scale.
            const float scale = exp2_fast(largest[i] - top);
            largest[i] = top;
            total[i] *= scale;
            for (int column = 0; column < COLUMNS; ++column) output[i][column] *= scale;
            for (int j = 0; j < 4; ++j) {
                const float weight = score[i][j] > LOWEST ? exp2_fast(score[i][j] - top) : 0.0f;
                total[i] += weight;
                weights[(down + DOWN * i) * WEIGHT_STRIDE + across + ACROSS * j] = weight;
            }
        }
        sync_block();  // every thread has read the keys
";

const OUTPUT: &str = r"
        sync_block();
        // 4 rows and COLUMNS elements a thread, four neighbours at a time.
        for (int key = 0; key < TILE_KEYS; key += 4) {
            Quad<float> weight[4];
            for (int i = 0; i < 4; ++i) weight[i] = load_quad(&weights[(down + DOWN * i) * WEIGHT_STRIDE + key]);
            for (int k = 0; k < 4; ++k)
                for (int column = 0; column < COLUMNS; column += 4) {
                    const Quad<float> value = load_quad(&tile[(key + k) * STRIDE + (across + column / 4 * ACROSS) * 4]);
                    for (int i = 0; i < 4; ++i)
                        for (int e = 0; e < 4; ++e) output[i][column + e] += weight[i].at[k] * value.at[e];
                }
        }
    }

    for (int i = 0; i < 4; ++i) {
        for (int mask = ACROSS / 2; mask > 0; mask /= 2) total[i] += shuffle_xor(total[i], mask);
        if (position[i] < 0) continue;
        const int row = down + DOWN * i, head = first_head + row / TILE_QUERIES;
        const unsigned long long at = static_cast<unsigned long long>(first_row + first + row % TILE_QUERIES) * QUERY_HEADS + head;
        const float factor = total[i] > 0.0f ? 1.0f / total[i] : 0.0f;  // a row without a visible key is zero
        for (int column = 0; column < COLUMNS; column += 4) {
            Quad<float> quad;
            for (int e = 0; e < 4; ++e) quad.at[e] = output[i][column + e] * factor;
            store_quad(&out[at * HEAD_DIM + (across + column / 4 * ACROSS) * 4], quad);
        }
    }
}
";
