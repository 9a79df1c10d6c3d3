//! Soft scores: the chunks of a row as a distribution, and then rows and heads as one score a chunk.

use super::functions::{self, ORDERED, Shape};
use super::launch::{Buffer, Element};
use super::scan::{chunks_here, ranking_here};
use super::scoring::{self, BLOCK_SCORES, Operand, scan_constants};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::{PrunedLayer, QueryReduction, Ranking, ScanRope, Scoring, StagePlan};

const THREADS: usize = 512;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Normalise {
    shape: Shape,
    layer: PrunedLayer,
    stage: usize,
}

impl Normalise {
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Self {
        // How the rows came by their scores does not matter here, only how they are reduced.
        let mut layer = scan_constants(layer, stage);
        let plan = &mut layer.stages[stage];
        plan.rope = ScanRope::None;
        plan.halvings = 0;
        plan.scoring = Scoring { query_reduction: plan.scoring.query_reduction, ..Scoring::default() };
        Self { shape, layer, stage }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        let plan = self.plan();
        let rows = if self.mean() { "_mean_rows" } else { "" };
        let ranking = functions::ranking_word(self.layer.ranking);
        let heads = self.shape.query_heads();
        format!("ihip_{pipeline}_s{}_normalise{rows}{ranking}_c{}_h{heads}", self.stage, plan.chunk)
    }

    /// Blocks of threads for `rows` queries.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        [rows.div_ceil(self.plan().query_block) as u32, self.shape.geometry.query_heads, 1]
    }

    pub(super) fn operands(&self, parents: impl Fn(usize) -> Buffer) -> Vec<Operand> {
        let mut operands = Vec::new();
        let mut push = |name, kind, buffer| operands.push(Operand { argument: Argument { name, kind }, buffer });
        push("step", ArgumentKind::Input(Element::I32), Buffer::Step);
        if self.stage > 0 {
            push("parents", ArgumentKind::Input(Element::I32), parents(self.stage));
        }
        push("row_scores", ArgumentKind::Input(Element::F32), Buffer::RowScores);
        push("scores", ArgumentKind::Output(Element::U32), Buffer::Scores);
        operands
    }

    fn plan(&self) -> &StagePlan {
        &self.layer.stages[self.stage]
    }

    fn mean(&self) -> bool {
        self.plan().scoring.query_reduction == QueryReduction::Mean
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let plan = self.plan();
        let heading = format!(
            "Stage {}: scores of chunks as logarithms of probabilities, each row of a head a distribution over the chunks that\n\
             were scored; then the {} over rows and the largest over heads.\n\
             One block of threads a head of a query block.",
            self.stage,
            if self.mean() { "mean probability" } else { "largest" },
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, stage {}", self.stage));
        writer.text(&functions::step_words());
        functions::chunk_list_constants(&mut writer, &self.layer, self.stage);
        writer
            .constant("QUERY_HEADS", self.shape.query_heads(), "query heads")
            .constant("GROUP", self.shape.group(), "query heads that share a key-value head")
            .constant("SCAN_WINDOW", self.layer.scan_window, "chunks that begin nearer than this are not scanned")
            .constant("QUERY_STRIDE", plan.query_stride, "neighbouring queries averaged into a row")
            .constant("SCORE_ROWS", plan.rows(), "rows of a head that have scores")
            .constant("THREADS", THREADS, "threads of a block")
            .constant("WARPS", THREADS / 32, "warps of a block")
            .float("LOG2E", std::f32::consts::LOG2_E, "exponentials are of base 2")
            .float("NEVER", -32000.0, "score of a chunk that nobody may see")
            .float("LOWEST", f32::MIN, "below every score");
        functions::ranking_constant(&mut writer, self.layer.ranking, self.shape.rankings(self.layer.ranking));
        writer.text(ORDERED);
        functions::chunk_list(&mut writer, self.stage);
        writer.text(SUM);
        let parents = if self.stage == 0 { "" } else { " const int* parents," };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step,{parents} const float* __restrict__ row_scores, unsigned* scores,\n    int row_stride, int score_stride) {{"
        ));
        let kv_head = if self.layer.ranking == Ranking::KvGroup { ", kv_head = head / GROUP" } else { "" };
        writer.more(&PLACE.replace("$KV_HEAD", kv_head));
        ranking_here(&mut writer, self.layer.ranking, true);
        writer.more(&chunks_here(self.stage, self.layer.ranking));
        let start = if self.stage == 0 { "chunk_start(" } else { "chunk_start(kept, " };
        let row = if self.layer.ranking == Ranking::All { BLOCK_SCORES } else { "score_row" };
        let reduce = if self.mean() { MEAN } else { LARGEST };
        let body = BODY.replace("$REDUCE\n", reduce.trim_start_matches('\n'));
        writer.text(&body.replace("$START(", start).replace("$ROW", row));
        Kernel {
            name: name.to_owned(),
            family: Family::Scan,
            text: writer.finish(),
            arguments: scoring::arguments(self.operands(|stage| Buffer::Lists { stage })),
            threads: THREADS as u32,
            shared_bytes: 0,
        }
    }
}

const SUM: &str = r"
// A sum of exponentials as its largest exponent and how many times that exponential it is.
struct Sum {
    float top;
    float total;

    inline void add(const Sum& other) {
        const float larger = max(top, other.top);
        total = total * exp2_fast((top - larger) * LOG2E) + other.total * exp2_fast((other.top - larger) * LOG2E);
        top = larger;
    }
    inline float logarithm() const { return top + logf(total); }
};
";

const PLACE: &str = r"
    SHARED(float, logarithms, SCORE_ROWS);  // of each row's sum
    SHARED(float, tops, WARPS);
    SHARED(float, totals, WARPS);

    const int start = step[STEP_START], rows = step[STEP_ROWS];
    const int block = blockIdx.x, head = blockIdx.y$KV_HEAD, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    const int limit = start + first - SCAN_WINDOW;
    const int live_rows = (min(QUERY_BLOCK, rows - first) + QUERY_STRIDE - 1) / QUERY_STRIDE;
    const float* const head_scores =
        row_scores + static_cast<unsigned long long>(block * QUERY_HEADS + head) * SCORE_ROWS * row_stride;
";

const BODY: &str = r"
    for (int row = 0; row < live_rows; ++row) {
        const float* const score = head_scores + static_cast<unsigned long long>(row) * row_stride;
        // The list is ascending: the chunks that were scored come first.
        Sum sum = {LOWEST, 0.0f};
        for (int chunk = thread; chunk < chunks && $START(chunk) <= limit; chunk += THREADS)
            sum.add({score[chunk], 1.0f});
        for (int mask = 16; mask > 0; mask /= 2) sum.add({shuffle_xor(sum.top, mask), shuffle_xor(sum.total, mask)});
        if (lane == 0) {
            tops[warp] = sum.top;
            totals[warp] = sum.total;
        }
        sync_block();
        if (thread == 0) {
            for (int other = 1; other < WARPS; ++other) sum.add({tops[other], totals[other]});
            logarithms[row] = sum.logarithm();
        }
        sync_block();
    }
    for (int chunk = thread; chunk < chunks && $START(chunk) <= limit; chunk += THREADS) {
$REDUCE
        atomic_max(&scores[$ROW + chunk], ordered(max(score, NEVER)));
    }
}
";

const LARGEST: &str = r"
        float score = LOWEST;
        for (int row = 0; row < live_rows; ++row)
            score = max(score, head_scores[static_cast<unsigned long long>(row) * row_stride + chunk] - logarithms[row]);
";

const MEAN: &str = r"
        Sum sum = {LOWEST, 0.0f};
        for (int row = 0; row < live_rows; ++row)
            sum.add({head_scores[static_cast<unsigned long long>(row) * row_stride + chunk] - logarithms[row], 1.0f});
        const float score = sum.logarithm() - logf(static_cast<float>(live_rows));
";
