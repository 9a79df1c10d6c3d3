//! Rows of the cache on their way into shared memory.

use super::cached;
use super::functions::Shape;

/// A tile of rows of the cache, on its way into shared memory as f32.
pub(crate) struct Tile {
    /// The cached array.
    pub(crate) from: &'static str,
    /// The array in shared memory.
    pub(crate) to: &'static str,
    /// Name of the constant that says how many rows there are, and its value.
    pub(crate) rows: (&'static str, usize),
    /// Threads of a block.
    pub(crate) threads: usize,
    /// What the rows are of.
    pub(crate) shape: Shape,
    /// Loads of a thread that are under way together, at most.
    pub(crate) loads: usize,
    /// Spaces in front of the text.
    pub(crate) indent: usize,
}

impl Tile {
    /// Copies the rows as they are.
    pub(crate) fn load_plain(&self) -> String {
        let (rows, _) = self.rows;
        let (load, to) = (self.quad("element"), self.to);
        self.batches(
            &format!("{rows} * HEAD_DIM / 4"),
            self.shape.head_dim() / 4,
            self.loads,
            "Quad<float> batch",
            &format!(
                "const int slot = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
const unsigned long long row = slot_row[slot];
batch[i] = {load};"
            ),
            &format!(
                "const int slot = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
store_quad(&{to}[slot * STRIDE + element], batch[i]);"
            ),
        )
    }

    /// Copies the rows, each turned by the angle of its rotary position.
    pub(crate) fn load_turned(&self) -> String {
        self.load_rotated(
            "const float2* const angles = &rope_table[slot_position[slot] * HALF + element];
for (int e = 0; e < 4; ++e) rotate(x[i].at[e], y[i].at[e], angles[e]);",
        )
    }

    /// Copies the rows, each turned by a blend of the angles of two positions.
    pub(crate) fn load_blended(&self) -> String {
        self.load_rotated(
            "const float2* const angles = &rope_table[slot_position[slot] * HALF + element];
const float2* const extended = &rope_table[slot_extended[slot] * HALF + element];
for (int e = 0; e < 4; ++e) rotate(x[i].at[e], y[i].at[e], blend(angles[e], extended[e]));",
        )
    }

    /// Copies the rows; `turn` turns four pairs of one.
    fn load_rotated(&self, turn: &str) -> String {
        let (rows, _) = self.rows;
        let (low, high, to) = (self.quad("element"), self.quad("element + HALF"), self.to);
        self.batches(
            &format!("{rows} * HALF / 4"),
            self.shape.head_dim() / 8,
            self.loads / 2,
            "Quad<float> x[$BATCH], y",
            &format!(
                "const int slot = item / (HALF / 4), element = item % (HALF / 4) * 4;
const unsigned long long row = slot_row[slot];
x[i] = {low};
y[i] = {high};"
            ),
            &format!(
                "const int slot = item / (HALF / 4), element = item % (HALF / 4) * 4;
{turn}
store_quad(&{to}[slot * STRIDE + element], x[i]);
store_quad(&{to}[slot * STRIDE + element + HALF], y[i]);"
            ),
        )
    }

    /// Four elements of a row: of keys and values as they are cached, of anything else as it is.
    fn quad(&self, element: &str) -> String {
        if matches!(self.from, "keys" | "values") {
            cached::quad(self.shape, self.from, "row", element)
        } else {
            format!("load_quad(&{}[row * HEAD_DIM + {element}])", self.from)
        }
    }

    /// A loop over `items`, `of_row` of them a row, whose loads of up to `most` turns are all under way before the
    /// first is used.
    fn batches(&self, items: &str, of_row: usize, most: usize, batch: &str, load: &str, store: &str) -> String {
        let turns = self.rows.1 * of_row / self.threads;
        let size = (1..=most).rev().find(|size| turns.is_multiple_of(*size)).unwrap_or(1);
        let indent = " ".repeat(self.indent);
        let inner = |text: &str| text.replace('\n', &format!("\n{indent}        "));
        let batch = batch.replace("$BATCH", &size.to_string());
        format!(
            "{indent}// A batch's loads are all under way before the first is used.
{indent}for (int first_item = thread; first_item < {items}; first_item += {size} * THREADS) {{
{indent}    {batch}[{size}];
{indent}    for (int i = 0; i < {size}; ++i) {{
{indent}        const int item = first_item + i * THREADS;
{indent}        {}
{indent}    }}
{indent}    for (int i = 0; i < {size}; ++i) {{
{indent}        const int item = first_item + i * THREADS;
{indent}        {}
{indent}    }}
{indent}}}",
            inner(load),
            inner(store)
        )
    }
}
