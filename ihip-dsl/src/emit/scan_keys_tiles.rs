//! Prefill on tensor cores, where chunks are not halved: averaged queries are the rows of a product, what stands for eight
//! chunks its columns.
//!
//! A warp takes up to 32 chunks, and the rows of as many heads of a group as fit into shared memory: they share the columns. Lanes
//! load their parts of a column straight into the registers that the product takes it from. The mean of a chunk's keys is
//! an f32, and split as queries are. Its bounds are two columns: greatest elements meet the rows' elements above zero, least
//! ones those below. Where every key counts, the keys of a chunk follow each other.

use super::extend;
use super::factor;
use super::factors::{Copies, Factors};
use super::functions::{self, CACHE_ROW, ORDERED, ROTATE, Shape};
use super::rows::{self, Heads, Rotation, Rows};
use super::scan::{chunks_here, heads_of, ranking_here};
use super::scan_prefill::{self, Products};
use super::scoring::{self, BLOCK_SCORES, Output, Source, scan_constants, scoring_words, stem};
use super::tune::Tune;
use super::turned::{self, ANGLES};
use super::writer::{Writer, indented};
use super::{Buffer, Family, Kernel};
use crate::tuning::{ScanPrefill, Tuning};
use crate::{PrunedLayer, QueryReduction, Ranking, ScanRope, StagePlan};

/// Four products beside each other take the same queries.
const DEFAULT: ScanPrefill = ScanPrefill { warps: 8, chunks: 32, blocks: 1024 };
/// A column that is two, of bounds or split, takes twice the registers.
const TWO: ScanPrefill = ScanPrefill { chunks: 16, ..DEFAULT };
/// Keys that are turned take more besides.
const TURNED: ScanPrefill = ScanPrefill { chunks: 8, ..DEFAULT };

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanKeysTiles {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
    tuning: ScanPrefill,
}

impl ScanKeysTiles {
    /// The kernel for a stage whose scores are products of rows and columns, where the rows of a head fit into shared
    /// memory.
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Option<Self> {
        let layer = scan_constants(layer, stage);
        let scan = Self { shape, layer, stage, tuning: DEFAULT };
        let (source, turned) = (scan.source(), scan.rotation().turns_keys());
        let tuning = match source {
            Source::Means | Source::Bounds => TWO,
            Source::Keys | Source::Paths if turned => TURNED,
            Source::Keys | Source::Paths => DEFAULT,
        };
        let scan = Self { tuning, ..scan };
        // Bounds cannot be turned.
        let turns = !turned || source != Source::Bounds && turned::fits(shape);
        // Each row has a bound of its own: the mean of them is not that of the mean row.
        let mean_bound = source == Source::Bounds && scan.mean();
        let product = source != Source::Paths && !mean_bound && !scoring::soft(scan.plan());
        // Means are numbers of their own.
        let factors = shape.kv().is_factor() || source == Source::Means && shape.kv().factor().is_some();
        (turns && product && factors && scan.factors_of(1).turns() == 1).then_some(scan)
    }

    /// Blocks of threads for `rows` queries and lists of `chunks` chunks.
    pub(crate) fn grid(&self, rows: usize, chunks: usize) -> [u32; 3] {
        let blocks = rows.div_ceil(self.plan().query_block);
        let heads = self.shape.query_heads() / self.heads();
        scan_prefill::grid(self.tuning, blocks, heads, chunks, self.at_once())
    }

    /// What it multiplies: rows and what stands for a chunk, where a mean is split like the rows.
    pub(super) fn products(&self) -> Products {
        let columns = match self.source() {
            Source::Keys | Source::Paths => self.plan().chunk,
            Source::Means | Source::Bounds => 2,
        };
        Products::new(&self.factors(), self.heads(), columns)
    }

    /// Chunks that a block of threads takes at a time.
    fn at_once(&self) -> usize {
        self.tuning.chunks * self.tuning.warps
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<scoring::Operand> {
        scoring::operands(self.shape, &self.layer, self.stage, self.source(), Output::Scores, parents)
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    fn source(&self) -> Source {
        scoring::source(self.plan())
    }

    fn mean(&self) -> bool {
        self.plan().scoring.query_reduction == QueryReduction::Mean
    }

    fn rotation(&self) -> Rotation {
        match self.plan().rope {
            ScanRope::None => Rotation::None,
            // A key stands where a right branch does: at 1, or at 0 with the query one nearer.
            ScanRope::Relative | ScanRope::Infllm => Rotation::Queries("SCAN_WINDOW"),
            ScanRope::ChunkIndexed => Rotation::Chunks,
            ScanRope::DynamicExtend | ScanRope::SelfExtend => Rotation::Extended,
        }
    }

    /// The rows of so many heads.
    fn factors_of(&self, heads: usize) -> Factors {
        let heads = if heads == 1 { Heads::One } else { Heads::Group(heads) };
        let rows = Rows {
            rotation: self.rotation(),
            heads,
            mean: self.mean(),
            of_head: self.plan().rows(),
            warps: rows::warps(self.shape),
            least_warps: 1,
        };
        let copies = if self.source() == Source::Bounds { Copies::Signs } else { Copies::One };
        Factors { shape: self.shape, rows, copies, apart: false }
    }

    /// Heads that a block of threads takes: those of a group whose scores are joined, as far as their rows fit.
    fn heads(&self) -> usize {
        let group = if self.layer.ranking == Ranking::Each { 1 } else { self.shape.group() };
        let fits = |heads: &usize| group.is_multiple_of(*heads) && self.factors_of(*heads).turns() == 1;
        (1..=group).rev().find(fits).unwrap_or(1)
    }

    fn factors(&self) -> Factors {
        self.factors_of(self.heads())
    }

    fn heading(&self) -> String {
        let plan = self.plan();
        let what = match self.source() {
            Source::Keys | Source::Paths => "every key of them",
            Source::Means => "the mean of their keys",
            Source::Bounds => "the bounds of their keys",
        };
        let rows = if self.mean() { "mean" } else { "largest" };
        let taken = match self.heads() {
            1 => "one head".to_owned(),
            heads => format!("{heads} heads of a group"),
        };
        format!(
            "Prefill, stage {}: scores chunks of {} tokens for blocks of {} queries by {what}.\n\
             A warp takes {taken} of one query block and {} chunks at a time; a chunk's score is\n\
             the {rows} over the rows of averaged queries, and the largest over {}.",
            self.stage,
            plan.chunk,
            plan.query_block,
            self.tuning.chunks,
            heads_of(self.layer.ranking),
        )
    }

    fn constants(&self, writer: &mut Writer) {
        let (plan, ScanPrefill { warps, chunks, .. }) = (self.plan(), self.tuning);
        self.shape.constants(writer);
        functions::chunk_list_constants(writer, &self.layer, self.stage);
        writer
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("QUERY_STRIDE", plan.query_stride, "neighbouring queries averaged into a row")
            .float("QUERY_SCALE", self.shape.geometry.query_scale, "factor of every query")
            .float("NEVER", -32000.0, "score of a chunk that nobody may see")
            .float("LOWEST", f32::MIN, "below every product")
            .constant("THREADS", 32 * warps, "threads of a block")
            .constant("WARPS", warps, "warps of a block")
            .constant("TEAMS", 1, "all warps take the same rows")
            .constant("CHUNKS", chunks, "chunks that a warp takes at a time")
            .constant("SETS", chunks / 8, "eights of them, each the columns of a product");
        if self.source() == Source::Keys {
            writer.constant("KEYS", plan.chunk, "keys of a chunk, one after the other");
        }
        self.factors().constants(writer);
        writer.constant("EACH", 8, "elements of a column that a lane has beside each other").constant(
            "LOADS",
            self.shape.head_dim() / 32,
            "such elements of a lane",
        );
        if let Some(extension) = extend::of_scan(plan.rope) {
            extend::constants(writer, self.shape, extension);
        }
        functions::ranking_constant(writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let factors = self.factors();
        let mut writer = Writer::new(&self.heading(), &format!("{pipeline}, stage {}", self.stage));
        self.constants(&mut writer);
        factor::alias(&mut writer, self.shape);
        writer.text(factor::PAIRS);
        if self.source() == Source::Keys {
            writer.text(CACHE_ROW);
        }
        writer.text(ORDERED);
        if self.rotation() != Rotation::None {
            writer.text(ROTATE);
        }
        factors.functions(&mut writer);
        if self.rotation().turns_keys() {
            if self.source() == Source::Keys {
                turned::define(&mut writer, self.shape);
            } else {
                writer.text(ANGLES);
            }
        }
        if let Some(extension) = extend::of_scan(self.plan().rope) {
            extend::functions(&mut writer, extension);
        }
        functions::chunk_list(&mut writer, self.stage);
        writer.text(&self.signature(name));
        let head = if self.heads() == 1 { HEAD_HERE } else { HEADS_HERE };
        writer.more(&PLACE.replace("$HEAD\n", head.trim_start_matches('\n')));
        if self.rotation() == Rotation::Extended {
            writer.more(extend::BLOCK);
        }
        ranking_here(&mut writer, self.layer.ranking, true);
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        writer.text(&factors.load()).more("    sync_block();");
        writer.text(&self.scan());
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(self.operands(|stage| Buffer::Lists { stage })),
            threads: (32 * self.tuning.warps) as u32,
            shared_bytes: factors.bytes() as u32,
        }
    }

    fn signature(&self, name: &str) -> String {
        let source = match self.source() {
            Source::Keys | Source::Paths => {
                "const Cached* __restrict__ keys,\n    const unsigned* __restrict__ page_table,"
            }
            Source::Means => "const float* __restrict__ means,\n   ",
            Source::Bounds => "const Cached* __restrict__ bounds,\n   ",
        };
        let rope = if self.rotation() == Rotation::None { "" } else { " const float2* __restrict__ rope_table," };
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, {source}{rope}{parents}\n    unsigned* scores, int score_stride) {{"
        )
    }

    /// The loop over chunks.
    fn scan(&self) -> String {
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let (load, multiply) = match (self.source(), self.rotation().turns_keys()) {
            (Source::Bounds, _) => (LOAD_BOUNDS, MULTIPLY_BOUNDS),
            (Source::Means, false) => (LOAD_MEANS, MULTIPLY_SPLIT),
            (Source::Means, true) => (LOAD_TURNED_MEANS, MULTIPLY_SPLIT),
            (Source::Keys | Source::Paths, false) => (LOAD_KEYS, MULTIPLY),
            (Source::Keys | Source::Paths, true) => (LOAD_TURNED_KEYS, MULTIPLY_SPLIT),
        };
        let (place, position) = if self.rotation() == Rotation::Extended {
            ("where it is brought back to", extend::block_position("token"))
        } else {
            ("the index of its chunk in the list", "min(base + set * 8 + down, chunks)".to_owned())
        };
        let load = load.replace("$PLACE", place).replace("$POSITION", &position);
        let row = if self.layer.ranking == Ranking::All { BLOCK_SCORES } else { "score_row" };
        let trim = |text: &str| text.trim_start_matches('\n').to_owned();
        let body = COLUMNS.replace("$LOAD\n", &trim(&load)).replace("$MULTIPLY\n", &trim(multiply));
        let body = self.factors().place_rows(&body);
        let body =
            if self.source() == Source::Keys { EVERY_KEY.replace("$COLUMNS\n", &indented(&body, 4)) } else { body };
        SCAN.replace("$COLUMNS\n", &trim(&body)).replace("$START(", start).replace("$SCORE_ROW", row)
    }
}

impl Tune for ScanKeysTiles {
    fn stem(&self, pipeline: &str) -> String {
        stem(&format!("scan{}", scoring_words(self.plan())), pipeline, self.shape, &self.layer, self.stage)
    }

    fn tuning(&self) -> Option<Tuning> {
        Some(Tuning::ScanPrefill(self.tuning))
    }

    fn space(&self) -> Vec<Tuning> {
        let at_once = |tuning| Self { tuning, ..self.clone() }.at_once();
        scan_prefill::space(self.plan(), [8, 16, 32], DEFAULT, at_once)
    }

    fn tuned(self, tuning: Tuning) -> Self {
        match tuning {
            Tuning::ScanPrefill(tuning) => Self { tuning, ..self },
            _ => self,
        }
    }
}

const PLACE: &str = r"
    SHARED_DYNAMIC(unsigned, factors);  // [COPIES][2][TILES][STEPS][32][4]: queries, and their rest
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int block = blockIdx.z, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
$HEAD
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
";

const HEAD_HERE: &str = r"
    const int head = blockIdx.y, first_head = head, kv_head = head / GROUP;
";

const HEADS_HERE: &str = r"
    const int first_head = blockIdx.y * HEADS, kv_head = first_head / GROUP;
";

const SCAN: &str = r"
    const int across = lane % 4, down = lane / 4;
    const unsigned* const own_factors = factors + lane * 4;
    const int first_chunk = (blockIdx.x * WARPS + warp) * CHUNKS;
    for (int base = first_chunk; base < chunks; base += gridDim.x * WARPS * CHUNKS) {
        // The list is ascending: where a warp's first chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
        // A lane loads parts of what stands for chunk `down` of each set. A chunk that may not be seen reads what is there and
        // ignores the product.
        int first_token[SETS];
        for (int set = 0; set < SETS; ++set) {
            const int chunk = base + set * 8 + down;
            first_token[set] = chunk < chunks ? $START(chunk) : limit + 1;
        }
        // Of the rows that a lane has a part of: columns 2 * across and 2 * across + 1.
        float even[SETS], odd[SETS];
        for (int set = 0; set < SETS; ++set) even[set] = odd[set] = LOWEST;
$COLUMNS
        for (int set = 0; set < SETS; ++set) {
            float score = max(down % 2 == 0 ? even[set] : odd[set], shuffle_xor(down % 2 == 0 ? odd[set] : even[set], 4));
            score = max(score, shuffle_xor(score, 8));
            score = max(score, shuffle_xor(score, 16));
            // Column `down` is in the lanes across it.
            score = shuffle(score, down % 2 * 4 + down / 2);
            if (across == 0 && first_token[set] <= limit)
                atomic_max(&scores[$SCORE_ROW + base + set * 8 + down], ordered(max(score, NEVER)));
        }
    }
}
";

const EVERY_KEY: &str = r"
        for (int key = 0; key < KEYS; ++key) {
$COLUMNS
        }
";

const COLUMNS: &str = r"
$LOAD
        for (int tile = 0; tile < TILES; ++tile) {
            float product[SETS][4] = {};
            for (int at = 0; at < STEPS; ++at)
                for (int part = 0; part < 2; ++part) {
$MULTIPLY
                }
            const int row = $ROW;
            const bool one = $ONE, other = $OTHER;
            for (int set = 0; set < SETS; ++set) {
                even[set] = max(even[set], max(one ? product[set][0] : LOWEST, other ? product[set][2] : LOWEST));
                odd[set] = max(odd[set], max(one ? product[set][1] : LOWEST, other ? product[set][3] : LOWEST));
            }
        }
";

const LOAD_KEYS: &str = r"
        Pairs column[SETS][LOADS];
        for (int set = 0; set < SETS; ++set) {
            const unsigned long long at = cache_row(page_table, first_token[set] <= limit ? first_token[set] + key : 0, kv_head);
            const Pairs* const from = reinterpret_cast<const Pairs*>(&keys[at * HEAD_DIM]);
            for (int load = 0; load < LOADS; ++load) column[set][load] = from[load * 4 + across];
        }
";

const LOAD_TURNED_KEYS: &str = r"
        // A key's position is $PLACE.
        Pairs column[SETS][LOADS], rest[SETS][LOADS];
        for (int set = 0; set < SETS; ++set) {
            const int token = first_token[set] <= limit ? first_token[set] + key : 0;
            const unsigned long long at = cache_row(page_table, token, kv_head);
            const Pairs* const from = reinterpret_cast<const Pairs*>(&keys[at * HEAD_DIM]);
            for (int load = 0; load < LOADS; ++load) column[set][load] = from[load * 4 + across];
            const int position = $POSITION;
            const float2* const angles = &rope_table[position * HALF];
            for (int load = 0; load < LOADS / 2; ++load)
                for (int pair = 0; pair < 4; ++pair) {
                    const Angles two = *reinterpret_cast<const Angles*>(&angles[(load * 4 + across) * 8 + pair * 2]);
                    const int high = load + LOADS / 2;
                    turn_pairs(column[set][load].at[pair], column[set][high].at[pair], rest[set][load].at[pair], rest[set][high].at[pair], two);
                }
        }
";

const LOAD_MEANS: &str = r"
        Pairs column[SETS][LOADS], rest[SETS][LOADS];
        for (int set = 0; set < SETS; ++set) {
            const unsigned long long at = (first_token[set] <= limit ? (first_token[set] - SINK) / CHUNK : 0) * KV_HEADS + kv_head;
            const float2* const from = reinterpret_cast<const float2*>(&means[at * HEAD_DIM]);
            for (int load = 0; load < LOADS; ++load)
                for (int pair = 0; pair < 4; ++pair) {
                    const float2 two = from[(load * 4 + across) * 4 + pair];
                    split_pair(two.x, two.y, column[set][load].at[pair], rest[set][load].at[pair]);
                }
        }
";

const LOAD_TURNED_MEANS: &str = r"
        // A mean's position is the index of its chunk in the list.
        Pairs column[SETS][LOADS], rest[SETS][LOADS];
        for (int set = 0; set < SETS; ++set) {
            const unsigned long long at = (first_token[set] <= limit ? (first_token[set] - SINK) / CHUNK : 0) * KV_HEADS + kv_head;
            const float2* const from = reinterpret_cast<const float2*>(&means[at * HEAD_DIM]);
            const float2* const angles = &rope_table[min(base + set * 8 + down, chunks) * HALF];
            for (int load = 0; load < LOADS / 2; ++load)
                for (int pair = 0; pair < 4; ++pair) {
                    const int first_pair = (load * 4 + across) * 4 + pair, high = load + LOADS / 2;
                    float2 x = from[first_pair], y = from[first_pair + HALF / 2];
                    const Angles two = *reinterpret_cast<const Angles*>(&angles[first_pair * 2]);
                    rotate(x.x, y.x, two.at[0]);
                    rotate(x.y, y.y, two.at[1]);
                    split_pair(x.x, x.y, column[set][load].at[pair], rest[set][load].at[pair]);
                    split_pair(y.x, y.y, column[set][high].at[pair], rest[set][high].at[pair]);
                }
        }
";

const LOAD_BOUNDS: &str = r"
        Pairs least[SETS][LOADS], greatest[SETS][LOADS];
        for (int set = 0; set < SETS; ++set) {
            const unsigned long long at = ((first_token[set] <= limit ? (first_token[set] - SINK) / CHUNK : 0) * KV_HEADS + kv_head) * 2;
            const Pairs* const from = reinterpret_cast<const Pairs*>(&bounds[at * HEAD_DIM]);
            for (int load = 0; load < LOADS; ++load) {
                least[set][load] = from[load * 4 + across];
                greatest[set][load] = from[HEAD_DIM / 8 + load * 4 + across];
            }
        }
";

const MULTIPLY: &str = r"
                    const Pairs factor = *reinterpret_cast<const Pairs*>(&own_factors[part * PART + (tile * STEPS + at) * STEP]);
                    for (int set = 0; set < SETS; ++set) {
                        const Pairs& whole = column[set][at / 2];
                        mma_16x8x16<Factor>(product[set], factor.at, {whole.at[at % 2 * 2], whole.at[at % 2 * 2 + 1]});
                    }
";

const MULTIPLY_SPLIT: &str = r"
                    const Pairs factor = *reinterpret_cast<const Pairs*>(&own_factors[part * PART + (tile * STEPS + at) * STEP]);
                    for (int set = 0; set < SETS; ++set) {
                        const Pairs &whole = column[set][at / 2], &over = rest[set][at / 2];
                        mma_16x8x16<Factor>(product[set], factor.at, {whole.at[at % 2 * 2], whole.at[at % 2 * 2 + 1]});
                        if (part == 0) mma_16x8x16<Factor>(product[set], factor.at, {over.at[at % 2 * 2], over.at[at % 2 * 2 + 1]});
                    }
";

const MULTIPLY_BOUNDS: &str = r"
                    const unsigned* const of_part = &own_factors[part * PART + (tile * STEPS + at) * STEP];
                    const Pairs above = *reinterpret_cast<const Pairs*>(of_part);
                    const Pairs below = *reinterpret_cast<const Pairs*>(&of_part[2 * PART]);
                    for (int set = 0; set < SETS; ++set) {
                        const Pairs &most = greatest[set][at / 2], &fewest = least[set][at / 2];
                        mma_16x8x16<Factor>(product[set], above.at, {most.at[at % 2 * 2], most.at[at % 2 * 2 + 1]});
                        mma_16x8x16<Factor>(product[set], below.at, {fewest.at[at % 2 * 2], fewest.at[at % 2 * 2 + 1]});
                    }
";
