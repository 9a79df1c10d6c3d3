//! Decoding in a pruned layer: attention of one query, split over the chip by keys, and joined by whichever block of
//! threads comes last.
//!
//! A step at this size is a chain of loads that wait for each other: list, page table, keys, partial results. So a block
//! starts the loads of everything that it reads before it uses the first, and no second launch joins the splits.

use super::cached;
use super::dense_row::PIECE_AT;
use super::functions::{QUADS, Shape};
use super::launch::Element;
use super::splits::{self, split_outputs};
use super::tune::Tune;
use super::visible::{Phase, Visible};
use super::writer::Writer;
use super::{ArgumentKind, Family, Kernel};
use crate::tuning::{AttendDecode, Tuning};
use crate::{PrunedLayer, Ranking};

/// What suits a large chip.
const DEFAULT: AttendDecode = AttendDecode { threads: 256, keys: 128 };
/// Keys where a head has more than 128 elements: as many bytes of values, and registers for keys.
const KEYS_OF_LONG_ROWS: usize = 64;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttendRow {
    shape: Shape,
    visible: Visible,
    tuning: AttendDecode,
    /// Whether it also caches the step's key and value.
    appends: bool,
}

impl AttendRow {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer) -> Self {
        // A list is read as it stands: how many queries share it in prefill does not matter here.
        let visible = Visible::pruned(&PrunedLayer { query_block: 1, ..layer.clone() });
        let keys = if shape.head_dim() > 128 { KEYS_OF_LONG_ROWS } else { DEFAULT.keys };
        Self { shape, visible, tuning: AttendDecode { keys, ..DEFAULT }, appends: false }
    }

    /// The same for steps that do nothing else: one launch that caches the step's key and value and attends. `None`
    /// where several blocks of threads share a key-value head, and where keys are cached rotated, queries with them.
    pub(crate) fn appending(shape: Shape, layer: &PrunedLayer) -> Option<Self> {
        let attend = Self::new(shape, layer);
        (attend.visible.rotates() && attend.heads() == shape.group()).then_some(Self { appends: true, ..attend })
    }

    /// Query heads of a group that one block of threads serves with the same keys: one where each has a list of its
    /// own, and no more than have a thread for each quad of output.
    fn heads(&self) -> usize {
        if self.visible.ranking() == Ranking::Each {
            return 1;
        }
        let most = (4 * DEFAULT.threads / self.shape.head_dim()).min(8);
        (1..=most).rev().find(|heads| self.shape.group().is_multiple_of(*heads)).unwrap_or(1)
    }

    /// Pieces that the keys are split into: fixed, so that a result never depends on the chip.
    pub(crate) fn splits(&self) -> usize {
        self.pieces().iter().sum()
    }

    /// Splits of list, sinks and window; none holds keys of two of them.
    fn pieces(&self) -> [usize; 3] {
        match self.visible {
            Visible::All => [0; 3],
            Visible::Pruned { sink, window, block, keep_blocks, .. } => {
                [block * keep_blocks, sink, window].map(|keys| keys.div_ceil(self.tuning.keys))
            }
        }
    }

    /// Lanes that take a key together: those beyond a half of it have no part.
    fn team(&self) -> usize {
        (self.shape.head_dim() / 8).next_power_of_two()
    }

    /// Whether every lane of a team has a part of a key.
    fn full(&self) -> bool {
        self.team() * 8 == self.shape.head_dim()
    }

    /// Quads of output.
    fn quads(&self) -> usize {
        self.heads() * self.shape.head_dim() / 4
    }

    /// Whether tensor cores take the values as they are cached, from rows whose pieces change places in eights or in fours.
    fn multiplies(&self) -> bool {
        self.shape.kv().is_factor() && self.shape.head_dim().is_power_of_two()
    }

    pub(crate) fn grid(&self) -> [u32; 3] {
        [self.splits() as u32, (self.shape.query_heads() / self.heads()) as u32, 1]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let AttendDecode { threads, keys } = self.tuning;
        let scaled = cached::scaled(self.shape);
        let heading = format!(
            "Decoding: attention of one query over {keys} of its keys: of the kept blocks, of the sinks, or of the window.\n\
             A block of threads takes HEADS query heads of a group; the last one of them joins the splits.{}",
            if self.appends { APPENDS } else { "" }
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, attend"));
        self.shape.constants(&mut writer);
        self.constants(&mut writer);
        writer.text(QUADS);
        cached::rows(&mut writer, self.shape);
        cached::quads(&mut writer, self.shape);
        if self.appends {
            cached::store(&mut writer, self.shape);
        }
        if self.multiplies() {
            writer.text(PIECE_AT);
        }
        self.visible.functions(&mut writer);
        let cache = if self.appends {
            "Cached* keys,\n    Cached* values"
        } else {
            "const Cached* __restrict__ keys,\n    const Cached* __restrict__ values"
        };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, {cache}, const unsigned* __restrict__ page_table,\n   {} float* partials, float* partial_sums,\n    unsigned* arrivals, Activation* out) {{",
            self.visible.parameters()
        ));
        let values = if scaled { SCALED_VALUES } else { VALUES };
        let place = PLACE.replace("$POSITIONS", self.visible.position_array());
        writer.more(&place.replace("$VALUES", values.trim_start_matches('\n')));
        writer.more(&self.visible.origin(Phase::Decode));
        writer.text(&self.slots());
        writer.text(&self.load());
        writer.more(&self.scores());
        let value = if scaled {
            "load_numbers(&value_tile[slot * ROW_BYTES + at * BITS / 8], value_scales[slot * SCALES + at / SCALE_GROUP])"
        } else {
            "load_quad(&value_tile[slot * HEAD_DIM + at])"
        };
        if self.multiplies() {
            writer.text(splits::OUTPUT_PRODUCTS);
        } else {
            writer.text(&splits::OUTPUT.replace("$VALUE", value));
        }
        writer.text(splits::JOIN);
        let mut arguments = self.visible.arguments(self.shape);
        if self.appends {
            let cached = Element::from(self.shape.kv());
            for argument in arguments.iter_mut().filter(|argument| matches!(argument.name, "keys" | "values")) {
                argument.kind = ArgumentKind::Output(cached);
            }
        }
        arguments.extend(split_outputs(self.shape.activation));
        Kernel {
            name: name.to_owned(),
            family: Family::Attend,
            text: writer.finish(),
            arguments,
            threads: threads as u32,
            shared_bytes: (keys * self.shape.kv().number_bytes(self.shape.head_dim())) as u32,
        }
    }

    /// Constants of the layer, and of how its keys are shared out.
    fn constants(&self, writer: &mut Writer) {
        let AttendDecode { threads, keys } = self.tuning;
        if let Visible::Pruned { sink, window, block, keep_blocks, .. } = self.visible {
            writer.constant("SINK", sink, "first tokens, which every query sees").constant(
                "WINDOW",
                window,
                "most recent tokens, which every query sees",
            );
            if self.visible.has_list() {
                writer.constant("BLOCK", block, "tokens of a block of the list").constant(
                    "KEEP",
                    keep_blocks,
                    "entries of the list; beyond its count they do not matter",
                );
            }
            self.visible.extension_constants(writer, self.shape);
            let [listed, sinks, _] = self.pieces();
            writer.constant("LISTED_SPLITS", listed, "pieces of the list, the first ones").constant(
                "SINK_SPLITS",
                sinks,
                "pieces of the sinks, which follow; the rest is the window's",
            );
        }
        let (team, quads) = (self.team(), self.quads());
        writer
            .constant("SPLITS", self.splits(), "pieces of the keys")
            .constant("HEADS", self.heads(), "query heads of a block of threads: they share the keys")
            .constant("FOURS", self.heads().div_ceil(4), "fours of heads")
            .constant("TILE_KEYS", keys, "keys of a split")
            .constant("WEIGHT_ROW", keys + 8, "weights of a head, and a gap: heads lie in other banks of shared memory")
            .constant("THREADS", threads, "threads of a block")
            .constant("WARPS", threads / 32, "warps of a block")
            .constant("TEAM", team, "lanes that take a key together")
            .constant("TEAMS", threads / team, "such teams in a block")
            .constant("KEYS_EACH", keys * team / threads, "keys of a team")
            .constant("PIECE", 16 * 8 / self.shape.kv().bits(), "elements of a 16-byte copy")
            .constant("QUADS", quads, "quads of output")
            .constant("PARTS", threads / quads, "threads that share the keys of a quad")
            .constant("BATCH", splits::joined(self.splits(), threads / quads), "splits that a thread joins at a time")
            .constant("NOWHERE", -1, "token of an empty slot");
        if self.multiplies() {
            writer.constant("PIECES", self.shape.head_dim() / 8, "16-byte pieces of a row");
        }
        writer
            .float(
                "QUERY_SCALE",
                self.shape.geometry.query_scale * std::f32::consts::LOG2_E,
                "factor of every query, times log2(e)",
            )
            .float("LOWEST", f32::MIN, "below every score");
    }

    /// Loads queries, keys and values of a split; the step's own are cached on the way where the kernel appends them.
    fn load(&self) -> String {
        let scaled = cached::scaled(self.shape);
        let turn = if self.visible.rotates() {
            "        rotate(x, y, rope_table[(position - origin) * HALF + element]);\n"
        } else {
            ""
        };
        let append = match (self.appends, scaled) {
            (false, _) => "",
            (true, false) => APPEND.trim_start_matches('\n'),
            (true, true) => SCALED_APPEND.trim_start_matches('\n'),
        };
        let copy = if scaled { SCALED_COPY } else { COPY };
        let value_at = if self.multiplies() { "piece_at(slot, element / PIECE)" } else { "slot * HEAD_DIM + element" };
        let quad = |element| {
            let quad = cached::quad(self.shape, "keys", "row", element);
            if self.full() { quad } else { format!("has_part ? {quad} : Quad<float>{{}}") }
        };
        LOAD.replace("$TURN\n", turn)
            .replace("$APPEND\n", append)
            .replace("$COPY\n", copy.trim_start_matches('\n'))
            .replace("$VALUE_AT", value_at)
            .replace("$ELEMENT\n", if self.full() { ELEMENT } else { ELEMENT_OR_NONE }.trim_start_matches('\n'))
            .replace("$LOW", &quad("element"))
            .replace("$HIGH", &quad("element + HALF"))
    }

    /// Scores the keys of a split, and makes weights of the scores.
    fn scores(&self) -> String {
        let [first, next, turn_key] = self.visible.follow_angles();
        SCORES
            .replace("$FIRST\n", first.trim_start_matches('\n'))
            .replace("$NEXT\n", next.trim_start_matches('\n'))
            .replace("$TURN\n", turn_key.trim_start_matches('\n'))
            // Keys in registers have no index: left to itself the compiler keeps a loop as it is that has two angles
            // or sums over a whole warp.
            .replace("$UNROLL\n", if self.visible.blends() || self.team() == 32 { "#pragma unroll\n" } else { "" })
    }

    /// Finds the token, the row and the position of every slot.
    fn slots(&self) -> String {
        let listed = if self.visible.has_list() {
            format!(
                r"        if (split < LISTED_SPLITS) {{
                const int slot = split * TILE_KEYS + thread, first = list[min(slot / BLOCK, KEEP - 1)];
                if (slot < count * BLOCK) token = first + slot % BLOCK;
                if (token < SINK || position - token < WINDOW) token = NOWHERE;  // seen as a sink or in the window{}
        }} else ",
                self.visible.place_listed(Phase::Decode, "at", "slot")
            )
        } else {
            "        ".to_owned()
        };
        let (declared, store) = (self.visible.declare("at"), self.visible.store("at"));
        let text = format!(
            r"    if (thread < TILE_KEYS) {{
        int token = NOWHERE{declared};
{listed}if (split < LISTED_SPLITS + SINK_SPLITS) {{
                const int sink = (split - LISTED_SPLITS) * TILE_KEYS + thread;
                if (sink < SINK && position - sink >= WINDOW) token = sink;{}
        }} else {{
                const int recent = position - WINDOW + 1 + (split - LISTED_SPLITS - SINK_SPLITS) * TILE_KEYS + thread;
                if (recent >= 0 && recent <= position) token = recent;{}
        }}
            slot_token[thread] = token;
            slot_row[thread] = cache_row(page_table, max(token, 0), kv_head);
{store}    }}
",
            self.visible.place_sink(Phase::Decode, "at", "sink"),
            self.visible.place_recent("at", "recent")
        );
        // The pieces are written for a loop around them.
        text.replace("\n                ", "\n            ").replace("\n            slot_", "\n        slot_")
    }
}

impl Tune for AttendRow {
    fn stem(&self, pipeline: &str) -> String {
        let stem = self.visible.stem(pipeline, Phase::Decode, self.shape);
        if self.appends { stem.replacen("_attend_", "_append_attend_", 1) } else { stem }
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::AttendDecode(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        let pairs = [128, 256, 512].into_iter().flat_map(|threads| [64, 128, 256].map(|keys| (threads, keys)));
        // A thread finds a slot, a team takes whole keys, and each quad of output has a thread.
        let fits = |&(threads, keys): &(usize, usize)| {
            keys <= threads && (keys * self.team()).is_multiple_of(threads) && self.quads() <= threads
        };
        let choices = pairs.filter(fits).map(|(threads, keys)| AttendDecode { threads, keys });
        choices.map(Tuning::AttendDecode).collect()
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::AttendDecode(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}
const APPENDS: &str = "\nThe window's last block caches the step's key and value first.";

const APPEND: &str = r"
    if (split == SPLITS - 1)
        // The step's own key and value are the last of the window: only this block reads them.
        for (int item = thread; item < HEAD_DIM / 2; item += THREADS) {
            const int what = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
            const int projected = (QUERY_HEADS + what * KV_HEADS + kv_head) * HEAD_DIM + element;
            const unsigned long long row = cache_row(page_table, position, kv_head);
            Cached* const to = what == 0 ? keys : values;
            store_quad(&to[row * HEAD_DIM + element], load_quad(&qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + projected]));
        }
";

const SCALED_APPEND: &str = r"
    if (split == SPLITS - 1)
        // The step's own key and value are the last of the window: only this block reads them.
        for (int first = 0; first < HEAD_DIM / 2; first += THREADS) {
            const int item = min(first + thread, HEAD_DIM / 2 - 1);
            const int what = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
            const int projected = (QUERY_HEADS + what * KV_HEADS + kv_head) * HEAD_DIM + element;
            const Quad<float> quad = load_quad(&qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + projected]);
            store_cached(what == 0 ? keys : values, cache_row(page_table, position, kv_head), element, quad, item == first + thread);
        }
";

const VALUES: &str = r"
    SHARED_DYNAMIC(Cached, value_tile);  // [TILE_KEYS][HEAD_DIM]
";

const SCALED_VALUES: &str = r"
    SHARED_DYNAMIC(Cached, value_tile);  // [TILE_KEYS][ROW_BYTES]: numbers
    SHARED(float, value_scales, TILE_KEYS * SCALES);
";

const COPY: &str = r"
    for (int item = thread; item < TILE_KEYS * HEAD_DIM / PIECE; item += THREADS) {
        const int slot = item / (HEAD_DIM / PIECE), element = item % (HEAD_DIM / PIECE) * PIECE;
        const unsigned long long row = slot_row[slot];
        copy_async_16(&value_tile[$VALUE_AT], &values[row * HEAD_DIM + element], slot_token[slot] != NOWHERE);
    }
";

const SCALED_COPY: &str = r"
    for (int item = thread; item < TILE_KEYS * HEAD_DIM / PIECE; item += THREADS) {
        const int slot = item / (HEAD_DIM / PIECE), byte = item % (HEAD_DIM / PIECE) * 16;
        const Cached* const numbers = cached_numbers(values, slot_row[slot]);
        copy_async_16(&value_tile[slot * ROW_BYTES + byte], numbers + byte, slot_token[slot] != NOWHERE);
    }
    for (int item = thread; item < TILE_KEYS * SCALES; item += THREADS)
        value_scales[item] = to_float(*cached_scale(values, slot_row[item / SCALES], item % SCALES * SCALE_GROUP));
";

const PLACE: &str = r"
$VALUES    SHARED(float, queries, HEADS * HEAD_DIM);
    SHARED(float, weights, HEADS * WEIGHT_ROW);
    SHARED(float, shares, PARTS * HEADS * HEAD_DIM);
    SHARED(int, slot_token, TILE_KEYS);
$POSITIONS    SHARED(unsigned, slot_row, TILE_KEYS);
    SHARED(float, largest, PARTS * HEADS);
    SHARED(float, total, PARTS * HEADS);
    SHARED(unsigned, arrived, 1);

    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, split = blockIdx.x;
    const int first_head = blockIdx.y * HEADS, kv_head = first_head / GROUP;
";

const LOAD: &str = r"
    for (int item = thread; item < HEADS * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Activation* const from =
            &qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + (first_head + head) * HEAD_DIM + element];
        float x = to_float(from[0]) * QUERY_SCALE, y = to_float(from[HALF]) * QUERY_SCALE;
$TURN
        queries[head * HEAD_DIM + element] = x;
        queries[head * HEAD_DIM + element + HALF] = y;
    }
$APPEND
    sync_block();
    // All that the block reads of the cache is under way before the first of it is used.
$COPY
    copy_async_commit();
$ELEMENT
    Quad<float> x[KEYS_EACH], y[KEYS_EACH];
    for (int i = 0; i < KEYS_EACH; ++i) {
        const unsigned long long row = slot_row[team + i * TEAMS];
        x[i] = $LOW;
        y[i] = $HIGH;
    }
";

const ELEMENT: &str = r"
    // A lane of a team has four elements of a key and the four that they turn with.
    const int element = lane % TEAM * 4, team = thread / TEAM;
";

const ELEMENT_OR_NONE: &str = r"
    // A lane of a team has four elements of a key and the four that they turn with. There are fewer fours than lanes: the
    // last ones have zeros.
    const int element = min(lane % TEAM * 4, HALF - 4), team = thread / TEAM;
    const bool has_part = lane % TEAM * 4 < HALF;
";

const SCORES: &str = r"
$FIRST
    Quad<float> query_x[HEADS], query_y[HEADS];
    for (int head = 0; head < HEADS; ++head) {
        query_x[head] = load_quad(&queries[head * HEAD_DIM + element]);
        query_y[head] = load_quad(&queries[head * HEAD_DIM + element + HALF]);
    }
$UNROLL
    for (int i = 0; i < KEYS_EACH; ++i) {
        const int slot = team + i * TEAMS;
$NEXT
$TURN
        for (int four = 0; four < FOURS; ++four) {
            float score[4] = {};
            for (int own = 0; own < 4; ++own) {
                const int head = four * 4 + own;
                if (head >= HEADS) continue;
                for (int e = 0; e < 4; ++e)
                    score[own] += query_x[head].at[e] * x[i].at[e] + query_y[head].at[e] * y[i].at[e];
            }
            // Each lane passes on the sums of half the heads, twice: what is left is summed up for one head.
            const bool odd = lane % 2 == 1, upper = lane / 2 % 2 == 1;
            const float one = (odd ? score[1] : score[0]) + shuffle_xor(odd ? score[0] : score[1], 1);
            const float other = (odd ? score[3] : score[2]) + shuffle_xor(odd ? score[2] : score[3], 1);
            float sum = (upper ? other : one) + shuffle_xor(upper ? one : other, 2);
            for (int mask = 4; mask < TEAM; mask *= 2) sum += shuffle_xor(sum, mask);
            const int head = four * 4 + lane % 4;
            if (lane % TEAM < 4 && head < HEADS) weights[head * WEIGHT_ROW + slot] = slot_token[slot] == NOWHERE ? LOWEST : sum;
        }
    }
    sync_block();
    // A warp a head.
    for (int head = warp; head < HEADS; head += WARPS) {
        float own[TILE_KEYS / 32], top = LOWEST, sum = 0.0f;
        for (int i = 0; i < TILE_KEYS / 32; ++i) {
            own[i] = weights[head * WEIGHT_ROW + lane + 32 * i];
            top = max(top, own[i]);
        }
        for (int mask = 16; mask > 0; mask /= 2) top = max(top, shuffle_xor(top, mask));
        for (int i = 0; i < TILE_KEYS / 32; ++i) {
            own[i] = own[i] > LOWEST ? exp2_fast(own[i] - top) : 0.0f;
            weights[head * WEIGHT_ROW + lane + 32 * i] = own[i];
            sum += own[i];
        }
        for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane == 0) {
            largest[head] = top;
            total[head] = sum;
        }
    }
    copy_async_wait<0>();
    sync_block();
";
