//! Rows of averaged queries in shared memory, as the left factors of products on tensor cores.
//!
//! A product takes sixteen rows. Each is split into what the factors' type holds of it and the rest, so that products are
//! exact to about 2⁻¹⁷ of the query. A lane takes its part of a factor with one load.

use super::functions::Shape;
use super::rows::{Rotation, Rows};
use super::writer::{Writer, indented};

/// Rows of a product.
const TILE_ROWS: usize = 16;
/// Shared memory for factors, in bytes; two blocks of threads fit a multiprocessor.
const SHARED: usize = 64 * 1024;

/// What becomes of a row.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Copies {
    /// One factor.
    One,
    /// One for left probes and one for right ones, whose positions differ.
    Sides,
    /// One of its elements above zero and one of those below.
    Signs,
}

/// Factors of the rows that a warp multiplies with its keys.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) shape: Shape,
    pub(super) rows: Rows,
    /// Copies of the rows that differ.
    pub(super) copies: Copies,
    /// Whether copies come into shared memory one after the other: then as many rows of each as of both.
    pub(super) apart: bool,
}

impl Factors {
    /// Products that the rows take.
    fn all_tiles(&self) -> usize {
        self.rows.count().div_ceil(TILE_ROWS)
    }

    /// Rows of all products.
    pub(super) fn all_rows(&self) -> usize {
        self.all_tiles() * TILE_ROWS
    }

    /// Copies of each row.
    pub(super) fn copies(&self) -> usize {
        if self.copies == Copies::One { 1 } else { 2 }
    }

    /// Copies in shared memory at a time.
    fn copies_here(&self) -> usize {
        if self.apart { 1 } else { self.copies() }
    }

    /// Whether what is in shared memory changes from product to product.
    pub(super) fn take_turns(&self) -> bool {
        self.apart || self.turns() > 1
    }

    fn tile_bytes(&self) -> usize {
        self.copies_here() * 2 * TILE_ROWS * self.shape.head_dim() * 2
    }

    /// Turns in which rows come into shared memory, as many in each.
    pub(super) fn turns(&self) -> usize {
        self.all_tiles().div_ceil((SHARED / self.tile_bytes()).max(1))
    }

    /// Products that the rows of a turn take.
    pub(super) fn tiles(&self) -> usize {
        self.all_tiles().div_ceil(self.turns())
    }

    /// Bytes of the rows of a turn.
    pub(super) fn bytes(&self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// The most teams of warps, each with rows of its own, that `allowed` lets stand side by side: 8, 4, 2 or 1.
    pub(super) fn teams(&self, allowed: impl Fn(usize) -> bool) -> usize {
        let fits = |teams: &usize| allowed(*teams) && !self.take_turns() && teams * self.bytes() <= SHARED;
        [8, 4, 2].into_iter().find(fits).unwrap_or(1)
    }

    pub(super) fn constants(&self, writer: &mut Writer) {
        self.rows.constants(writer);
        let copies = match self.copies {
            Copies::One => "copies of the queries",
            Copies::Sides => "copies of the queries: for left probes, and for right ones",
            Copies::Signs => "copies of the queries: their elements above zero, and those below",
        };
        writer.constant("COPIES", self.copies(), copies);
        writer.constant("TILES", self.tiles(), "sixteens of rows in shared memory");
        if self.take_turns() {
            writer.constant("TURNS", self.turns(), "turns in which all rows come there");
        }
        writer
            .constant("STEPS", self.shape.head_dim() / 16, "products along a row")
            .constant("STEP", 128, "words of a left factor: four for each lane")
            .constant("PART", self.tiles() * self.shape.head_dim() / 16 * 128, "words of the rows, or of their rest");
    }

    /// `text` with the two rows of a product that a lane has a part of, and whether they are there, in the place of
    /// `$ROW`, `$ONE` and `$OTHER`.
    pub(super) fn place_rows(&self, text: &str) -> String {
        let live = |row: &str| {
            if self.rows.plain() { format!("{row} < live_rows") } else { format!("is_live({row}, live_rows)") }
        };
        let tile = if self.take_turns() { "(turn * TILES + tile)" } else { "tile" };
        text.replace("$ROW", &format!("{tile} * 16 + down"))
            .replace("$ONE", &live("row"))
            .replace("$OTHER", &live("row + 8"))
    }

    /// Functions that [`Factors::load`] and products need.
    pub(super) fn functions(&self, writer: &mut Writer) {
        writer.text(SPLIT_PAIR);
        self.rows.functions(writer);
    }

    /// Fills shared memory with the rows of all teams, of the turn `turn` where they take turns, and of the copy `copy`
    /// where copies come apart.
    pub(super) fn load(&self) -> String {
        let slot = if self.take_turns() { "turn * TILES * 16 + slot" } else { "slot" };
        let (row, scale) = match (self.rows.mean, self.rows.plain()) {
            (true, _) => (MEAN.to_owned(), ""),
            (false, true) => (PLAIN.to_owned() + NEIGHBOURS, " * scale"),
            (false, false) => (OF_TEAM.to_owned() + NEIGHBOURS, " * scale"),
        };
        // Probes that wait for their rows leave few registers.
        let row =
            if self.apart { row.replace(EACH_NEIGHBOUR, &format!("#pragma unroll 1\n{EACH_NEIGHBOUR}")) } else { row };
        let (turn, turn_row) = match self.rows.rotation {
            Rotation::QueriesTwice => (TURN_TWICE, ""),
            Rotation::Queries(_) => (TURN, ""),
            Rotation::Chunks | Rotation::Extended if self.rows.mean => ("", TURN_ROW_OF_MEAN),
            Rotation::Chunks | Rotation::Extended => (TURN_ROW, ""),
            Rotation::None | Rotation::Halves => ("", ""),
        };
        let signs = if self.copies == Copies::Signs { PARTS_BY_SIGN.trim_start_matches('\n') } else { "" };
        let turn = turn.trim_start_matches('\n').to_owned() + signs;
        let copy = COPY.trim_start_matches('\n').replace("$TURN\n", &turn);
        let copies = if self.apart {
            copy.replace("$TEAM", "team")
        } else {
            let copy = indented(&copy, 4).replace("$TEAM", "(team * COPIES + copy)");
            EACH_COPY.trim_start_matches('\n').replace("$COPY\n", &copy)
        };
        LOAD.replace("$ROW\n", row.trim_start_matches('\n'))
            .replace("$TURN_ROW\n", turn_row.trim_start_matches('\n'))
            .replace("$COPIES\n", &copies)
            .replace("$POSITION", self.rows.rotation.row_position().unwrap_or_default())
            .replace("$SLOT", slot)
            .replace("$SCALE", scale)
    }
}

const SPLIT_PAIR: &str = r"
// Two numbers as what the factors' type holds of them and the rest.
inline void split_pair(float low, float high, unsigned& whole, unsigned& rest) {
    whole = pack<Factor>(low, high);
    low -= to_float(Factor{static_cast<unsigned short>(whole)});
    high -= to_float(Factor{static_cast<unsigned short>(whole >> 16)});
    rest = pack<Factor>(low, high);
}
";

const LOAD: &str = r"
    // A row is the mean of QUERY_STRIDE neighbours; those beyond the call are left out of it. Elements come in the order
    // in which lanes load them from a key, to which a product is indifferent.
    for (int item = thread; item < TEAMS * TILES * 16 * HALF / 2; item += THREADS) {
        const int element = item % (HALF / 2) * 2, slot = item / (HALF / 2) % (TILES * 16);
        const int team = item / (HALF / 2 * TILES * 16);
$ROW
$COPIES
    }
";

const EACH_COPY: &str = r"
        for (int copy = 0; copy < COPIES; ++copy) {
$COPY
        }
";

const COPY: &str = r"
        float turned_x[2], turned_y[2];
        for (int e = 0; e < 2; ++e) {
            turned_x[e] = x[e]$SCALE;
            turned_y[e] = y[e]$SCALE;
$TURN
        }
        for (int half = 0; half < 2; ++half) {
            const float* const turned = half == 0 ? turned_x : turned_y;
            const int at = element + half * HALF, load = at / EACH, pair = load / 4 * (EACH / 2) + at % EACH / 2;
            const int to = ($TEAM * 2 * TILES + slot / 16) * STEPS * STEP + pair / 2 * STEP +
                           (slot % 8 * 4 + load % 4) * 4 + pair % 2 * 2 + slot % 16 / 8;
            split_pair(turned[0], turned[1], factors[to], factors[to + PART]);
        }
";

const PLAIN: &str = r"
        const int row = $SLOT, own_head = first_head + team;
        const int neighbours = min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE);
";

const OF_TEAM: &str = r"
        const int place = $SLOT, of_team = place / HEAD_ROWS, row = place % HEAD_ROWS;
        const int own_head = first_head + team * HEADS + of_team;
        const int neighbours = of_team < HEADS ? min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE) : 0;
";

const NEIGHBOURS: &str = r"        float x[2] = {}, y[2] = {};
        for (int neighbour = 0; neighbour < neighbours; ++neighbour) {
            const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
            const Activation* const query = &qkv[at * QKV_ROW + own_head * HEAD_DIM + element];
            for (int e = 0; e < 2; ++e) {
                x[e] += to_float(query[e]);
                y[e] += to_float(query[HALF + e]);
            }
        }
        const float scale = neighbours > 0 ? QUERY_SCALE / static_cast<float>(neighbours) : 0.0f;
";

const EACH_NEIGHBOUR: &str = "        for (int neighbour = 0; neighbour < neighbours; ++neighbour) {\n";

const MEAN: &str = r"
        // The mean of a head's rows stands for them: a product with it is the mean of theirs.
        const int of_team = $SLOT, own_head = first_head + team * HEADS + of_team;
        float x[2] = {}, y[2] = {};
        for (int row = 0; of_team < HEADS && row < live_rows; ++row) {
            const int neighbours = min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE);
            float row_x[2] = {}, row_y[2] = {};
            for (int neighbour = 0; neighbour < neighbours; ++neighbour) {
                const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
                const Activation* const query = &qkv[at * QKV_ROW + own_head * HEAD_DIM + element];
                for (int e = 0; e < 2; ++e) {
                    row_x[e] += to_float(query[e]);
                    row_y[e] += to_float(query[HALF + e]);
                }
            }
            const float scale = QUERY_SCALE / static_cast<float>(neighbours * live_rows);
            for (int e = 0; e < 2; ++e) {
                row_x[e] *= scale;
                row_y[e] *= scale;
$TURN_ROW
                x[e] += row_x[e];
                y[e] += row_y[e];
            }
        }
";

const TURN_TWICE: &str = r"
            // Left probes are at position 0, right ones at 1, queries at SCAN_WINDOW + 1: what counts is the distance.
            rotate(turned_x[e], turned_y[e], rope_table[(SCAN_WINDOW + 1 - copy) * HALF + element + e]);
";

const TURN: &str = r"
            rotate(turned_x[e], turned_y[e], rope_table[SCAN_WINDOW * HALF + element + e]);
";

const TURN_ROW: &str = r"
            const int position = $POSITION;
            rotate(turned_x[e], turned_y[e], rope_table[position * HALF + element + e]);
";

const PARTS_BY_SIGN: &str = r"
            // Elements of the first copy meet greatest ones, those of the second least ones.
            turned_x[e] = copy == 0 ? max(turned_x[e], 0.0f) : min(turned_x[e], 0.0f);
            turned_y[e] = copy == 0 ? max(turned_y[e], 0.0f) : min(turned_y[e], 0.0f);
";

const TURN_ROW_OF_MEAN: &str = r"
                const int position = $POSITION;
                rotate(row_x[e], row_y[e], rope_table[position * HALF + element + e]);
";
