//! Rows of averaged queries in shared memory, and their products with a tile of keys: what the prefill scans share.

use super::functions::Shape;
use super::writer::Writer;

/// Rows and keys of a warp's product: 8 threads across, 4 down, 4 × 4 results each.
const WARP_ROWS: usize = 16;
const WARP_COLUMNS: usize = 32;

/// How queries and keys meet their rotary positions.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rotation {
    /// Not at all.
    None,
    /// One copy of the queries, at this distance from the keys.
    Queries(&'static str),
    /// A copy of the queries for left probes and one for right ones: probes stay as they are.
    QueriesTwice,
    /// Queries one past the scan's window, and keys at 0 or 1.
    Halves,
    /// Queries and keys, the keys by the index of their chunk.
    Chunks,
    /// Queries at their positions, and keys where they are brought back to.
    Extended,
}

impl Rotation {
    /// Whether keys are turned too, each by the position of its slot.
    pub(super) fn turns_keys(self) -> bool {
        matches!(self, Self::Halves | Self::Chunks | Self::Extended)
    }

    /// Where a row of averaged queries stands, where that depends on the row.
    pub(super) fn row_position(self) -> Option<&'static str> {
        match self {
            Self::Chunks => Some("min(start + first + row * QUERY_STRIDE, chunks + SCAN_WINDOW)"),
            Self::Extended => Some("min(first_position + row * QUERY_STRIDE, end_position - 1) - origin"),
            Self::None | Self::Queries(_) | Self::QueriesTwice | Self::Halves => None,
        }
    }
}

/// Query heads whose rows one block of threads holds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Heads {
    /// One.
    One,
    /// All that share a key-value head: so many.
    Group(usize),
}

/// The rows of a block of threads.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) rotation: Rotation,
    pub(super) heads: Heads,
    /// Whether their mean stands for the rows of a head: a product with it is the mean of theirs.
    pub(super) mean: bool,
    /// Rows of a query block and head, before the mean is taken.
    pub(super) of_head: usize,
    /// Warps of a block of threads: [`warps`].
    pub(super) warps: usize,
    /// Warps side by side along the rows, at least.
    pub(super) least_warps: usize,
}

/// Warps of a block of threads: fewer where rows are so long that those of four, and their keys, do not fit into the shared
/// memory that every chip has.
pub(super) const fn warps(shape: Shape) -> usize {
    if shape.head_dim() > 128 { 2 } else { 4 }
}

/// What becomes of the products of a thread's rows with one key.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Product {
    /// The largest.
    Largest,
    /// The largest of all heads and that of one of them.
    LargestAndOwn,
    /// Their sum.
    Sum,
    /// Each goes to its row's scores.
    Scores,
}

impl Rows {
    /// Rows of one head in the product.
    fn head_rows(&self) -> usize {
        if self.mean { 1 } else { self.of_head }
    }

    pub(super) fn count(&self) -> usize {
        match self.heads {
            Heads::One => self.head_rows(),
            Heads::Group(heads) => heads * self.head_rows(),
        }
    }

    /// Whether a row of the product is a row of the query block: no mean, no other head.
    pub(super) fn plain(&self) -> bool {
        self.heads == Heads::One && !self.mean
    }

    /// Threads of a block.
    pub(super) const fn threads(&self) -> usize {
        32 * self.warps
    }

    /// Warps side by side along the rows; the others take other keys.
    pub(super) fn row_warps(&self) -> usize {
        self.count().div_ceil(WARP_ROWS).next_power_of_two().clamp(self.least_warps, self.warps)
    }

    pub(super) fn padded(&self) -> usize {
        self.count().next_multiple_of(WARP_ROWS * self.row_warps())
    }

    /// Rows in shared memory at a time.
    pub(super) fn tile_rows(&self) -> usize {
        self.padded().min(WARP_ROWS * self.warps)
    }

    /// Whether all rows are in shared memory together.
    pub(super) fn whole(&self) -> bool {
        self.tile_rows() == self.padded()
    }

    /// Keys of a tile.
    pub(super) fn columns(&self) -> usize {
        WARP_COLUMNS * self.warps / self.row_warps()
    }

    /// Floats from one copy of the rows to the next: a warp reads four rows of each at a time, from all banks.
    pub(super) fn copy_floats(&self, shape: Shape) -> usize {
        self.tile_rows() * (shape.head_dim() + 4) + 16
    }

    /// Constants of rows that are no rows of the query block.
    pub(super) fn constants(&self, writer: &mut Writer) {
        if self.plain() {
            return;
        }
        let heads = match self.heads {
            Heads::One => 1,
            Heads::Group(heads) => heads,
        };
        writer.constant("HEADS", heads, "query heads of a block of threads: they share the keys").constant(
            "HEAD_ROWS",
            self.head_rows(),
            if self.mean { "rows of a head: the mean of its rows" } else { "rows of a head" },
        );
    }

    /// `is_live`, where [`Rows::constants`] has constants for it.
    pub(super) fn functions(&self, writer: &mut Writer) {
        if self.plain() {
            return;
        }
        let body = if self.mean {
            "inline bool is_live(int row, int live_rows) { return row < HEADS && live_rows > 0; }"
        } else {
            "inline bool is_live(int row, int live_rows) { return row < HEADS * HEAD_ROWS && row % HEAD_ROWS < live_rows; }"
        };
        writer.text(&format!(
            "// Whether a row of the product is there: each head has HEAD_ROWS, one after the other.\n{body}"
        ));
    }

    /// Averages and rotates the block's queries. Where they take turns, `tile` is the first row of the turn.
    pub(super) fn load(&self) -> String {
        let row = if self.whole() { "slot" } else { "tile + slot" };
        if self.mean {
            return self.load_mean(row);
        }
        let store = self.rotation.row_position().map_or_else(|| self.turn_rows(), turn);
        let of = if self.whole() { "slot" } else { "(tile + slot)" };
        let (slot, neighbours, head) = match self.heads {
            Heads::One => (
                format!("const int slot = item / HALF, row = {row}, element = item % HALF;"),
                "min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE)",
                "head",
            ),
            Heads::Group(_) => (
                format!(
                    "const int slot = item / HALF, element = item % HALF;\n        const int of_group = {of} / HEAD_ROWS, row = {of} % HEAD_ROWS;"
                ),
                "of_group < HEADS ? min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE) : 0",
                "(kv_head * GROUP + of_group)",
            ),
        };
        format!(
            r"
    // A row is the mean of QUERY_STRIDE neighbours; those beyond the call are left out of it.
    for (int item = thread; item < TILE_ROWS * HALF; item += THREADS) {{
        {slot}
        const int neighbours = {neighbours};
        float x = 0.0f, y = 0.0f;
        for (int neighbour = 0; neighbour < QUERY_STRIDE; ++neighbour) {{
            if (neighbour >= neighbours) continue;
            const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
            const Activation* const query = &qkv[at * QKV_ROW + {head} * HEAD_DIM + element];
            x += to_float(query[0]);
            y += to_float(query[HALF]);
        }}
        const float scale = neighbours > 0 ? QUERY_SCALE / static_cast<float>(neighbours) : 0.0f;
        x *= scale;
        y *= scale;
{store}        queries[slot * STRIDE + element] = x;
        queries[slot * STRIDE + element + HALF] = y;
    }}
"
        )
    }

    /// The same where the rows of a head become one.
    fn load_mean(&self, slot: &str) -> String {
        let (turn_row, store) = match self.rotation.row_position() {
            Some(position) => (
                format!("            rotate(row_x, row_y, rope_table[({position}) * HALF + element]);\n"),
                String::new(),
            ),
            None => (String::new(), self.turn_rows()),
        };
        let head = match self.heads {
            Heads::One => "head".to_owned(),
            Heads::Group(_) => format!("(kv_head * GROUP + {slot})"),
        };
        format!(
            r"
    // A row is the mean of QUERY_STRIDE neighbours; those beyond the call are left out of it. The mean of a head's rows
    // stands for them: a product with it is the mean of theirs.
    for (int item = thread; item < TILE_ROWS * HALF; item += THREADS) {{
        const int slot = item / HALF, element = item % HALF;
        float x = 0.0f, y = 0.0f;
        for (int row = 0; slot < HEADS && row < live_rows; ++row) {{
            const int neighbours = min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE);
            float row_x = 0.0f, row_y = 0.0f;
            for (int neighbour = 0; neighbour < neighbours; ++neighbour) {{
                const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
                const Activation* const query = &qkv[at * QKV_ROW + {head} * HEAD_DIM + element];
                row_x += to_float(query[0]);
                row_y += to_float(query[HALF]);
            }}
            const float scale = QUERY_SCALE / static_cast<float>(neighbours * live_rows);
            row_x *= scale;
            row_y *= scale;
{turn_row}            x += row_x;
            y += row_y;
        }}
{store}        queries[slot * STRIDE + element] = x;
        queries[slot * STRIDE + element + HALF] = y;
    }}
"
        )
    }

    /// Turns a row whose position does not depend on the row.
    fn turn_rows(&self) -> String {
        match self.rotation {
            Rotation::None | Rotation::Chunks | Rotation::Extended => String::new(),
            Rotation::Queries(distance) => turn(distance),
            Rotation::Halves => turn("SCAN_WINDOW + 1"),
            Rotation::QueriesTwice => TURN_TWICE.trim_start_matches('\n').to_owned(),
        }
    }

    /// The products of a warp's rows with its keys, in the scope of `own_queries` and `warp_probes`.
    pub(super) fn product(&self, product: Product) -> String {
        self.reduce(product, PRODUCT)
    }

    /// `text`, which leaves a thread's products in `sum`, with what becomes of them in place of `$REST`.
    pub(super) fn reduce(&self, product: Product, text: &str) -> String {
        let row = if self.whole() { "" } else { "tile + " };
        let live = match (self.plain(), self.whole()) {
            (true, true) => "row + down + 4 * i < live_rows".to_owned(),
            (true, false) => "row + down + 4 * i < live_rows - tile".to_owned(),
            (false, _) => format!("is_live({row}row + down + 4 * i, live_rows)"),
        };
        let rest = match product {
            Product::Largest => {
                format!("                        if ({live}) product[j] = max(product[j], sum[i][j]);\n")
            }
            Product::Sum => format!("                        if ({live}) product[j] += sum[i][j];\n"),
            Product::LargestAndOwn => format!(
                "                        if ({live}) {{\n\
                 \x20                           product[j] = max(product[j], sum[i][j]);\n\
                 \x20                           if (({row}row + down + 4 * i) / HEAD_ROWS == head % GROUP) own[j] = max(own[j], sum[i][j]);\n\
                 \x20                       }}\n"
            ),
            Product::Scores => format!(
                "                        if ({live} && slot_live[warp / ROW_WARPS * 32 + across + 8 * j])\n\
                 \x20                           keep_score(&own_scores[({row}row + down + 4 * i) * row_stride + 8 * j], sum[i][j], key);\n"
            ),
        };
        text.replace("$REST\n", &rest)
    }
}

fn turn(position: &str) -> String {
    format!("        rotate(x, y, rope_table[({position}) * HALF + element]);\n")
}

const TURN_TWICE: &str = r"
        // Left probes are at position 0, right ones at 1, queries at SCAN_WINDOW + 1: what counts is the distance.
        float right_x = x, right_y = y;
        rotate(right_x, right_y, rope_table[SCAN_WINDOW * HALF + element]);
        queries[COPY + slot * STRIDE + element] = right_x;
        queries[COPY + slot * STRIDE + element + HALF] = right_y;
        rotate(x, y, rope_table[(SCAN_WINDOW + 1) * HALF + element]);
";

const PRODUCT: &str = r"
            // 4 x 4 products a thread: rows down + 4 * i, probes across + 8 * j, which are all left ones or all right ones.
            for (int row = warp % ROW_WARPS * 16; row < TILE_ROWS; row += ROW_WARPS * 16) {
                float sum[4][4] = {};
#pragma unroll 4
                for (int element = 0; element < HEAD_DIM; element += 4) {
                    Quad<float> query[4], probe[4];
                    for (int i = 0; i < 4; ++i) query[i] = load_quad(&own_queries[(row + down + 4 * i) * STRIDE + element]);
                    for (int j = 0; j < 4; ++j) probe[j] = load_quad(&warp_probes[(across + 8 * j) * STRIDE + element]);
                    for (int i = 0; i < 4; ++i)
                        for (int j = 0; j < 4; ++j)
                            for (int e = 0; e < 4; ++e) sum[i][j] += query[i].at[e] * probe[j].at[e];
                }
                for (int i = 0; i < 4; ++i)
                    for (int j = 0; j < 4; ++j)
$REST
            }
";
