//! How much of what a decoding step's scan goes through was on the GPU.
//!
//! A scan does not count what it reads: that would slow it down. Once it has run, the pages of the chunks that entered its
//! stage say the same, in no step's way.

use super::functions::{Shape, step_words};
use super::launch::{Buffer, Element};
use super::scoring::{Source, halving, source};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel, tally};
use crate::{LayerPlan, PrunedLayer, Renewal};

/// Threads of a block.
const THREADS: u32 = 256;

/// Blocks of threads.
const BLOCKS: u32 = 16;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Count {
    shape: Shape,
    stage: usize,
    sink: usize,
    window: usize,
    scan_window: usize,
    chunk: usize,
    /// From the second stage on: tokens of a chunk of the stage before, how many it keeps, and lists.
    list: Option<[usize; 3]>,
}

impl Count {
    /// `None` where the stage reads no keys, or is one too many to be counted.
    pub(super) fn new(shape: Shape, layer: &PrunedLayer, stage: usize) -> Option<Self> {
        let plan = &layer.stages[stage];
        let reads = halving(plan).is_some() || source(plan) == Source::Keys;
        let before = stage.checked_sub(1).map(|before| layer.stages[before].chunk);
        let list = before.zip(plan.keep_chunks).map(|(chunk, keep)| [chunk, keep, shape.rankings(layer.ranking)]);
        let PrunedLayer { sink, window, scan_window, .. } = *layer;
        let count = Self { shape, stage, sink, window, scan_window, chunk: plan.chunk, list };
        (reads && stage < tally::STAGES).then_some(count)
    }

    /// Those of a decoding step of `kind` that renews what `renewal` says.
    pub(super) fn of(shape: Shape, kind: &LayerPlan, renewal: Renewal) -> Vec<Self> {
        let LayerPlan::Pruned(layer) = kind else { return Vec::new() };
        let scanned = |stage: &usize| !renewal.heads(*stage, shape.kv_heads()).is_empty();
        let stages = (0..layer.stages.len()).filter(scanned);
        stages.filter_map(|stage| Self::new(shape, layer, stage)).collect()
    }

    pub(super) fn stem(&self, pipeline: &str) -> String {
        let Self { stage, chunk, .. } = self;
        let keep = self.list.map(|[chunk, keep, _]| format!("_k{}", chunk * keep)).unwrap_or_default();
        format!("ihip_{pipeline}_s{stage}_count_c{chunk}{keep}_{}", self.shape.suffix())
    }

    /// Most pages that a step counts in a cache of `tokens` tokens.
    pub(super) fn most(&self, tokens: usize) -> usize {
        // A chunk that begins amid a page reaches into one more.
        let pages = |chunk: usize| chunk.div_ceil(self.shape.geometry.page as usize) + 1;
        match self.list {
            Some([chunk, keep, lists]) => lists * keep * pages(chunk),
            None => tokens.div_ceil(self.chunk) * pages(self.chunk),
        }
    }

    pub(super) const fn grid() -> [u32; 3] {
        [BLOCKS, 1, 1]
    }

    /// What a launch passes, before the slots whose keys are on the GPU.
    pub(super) fn buffers(&self) -> Vec<Buffer> {
        let list = self.list.map(|_| Buffer::CachedLists { stage: self.stage });
        [Some(Buffer::Step), list, Some(Buffer::PageTable), Some(Buffer::Tally)].into_iter().flatten().collect()
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = "Counts the pages of the chunks that a stage of a decoding step went through, by where their keys are: once for each\nchunk. It runs beside the layers that follow.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, stage {}", self.stage));
        writer.text(&step_words());
        writer
            .constant(
                "HERE",
                tally::stage(self.stage),
                "word of the pages that are on the GPU; the next one is of the others",
            )
            .constant("PAGE", self.shape.geometry.page, "tokens of a page of the cache");
        let lists = if let Some([chunk, keep, lists]) = self.list {
            writer
                .constant("PARENT", chunk, "tokens of a chunk of the stage before")
                .constant("KEPT", keep, "chunks that it keeps; behind them a list says how many there are")
                .constant("LISTS", lists, "lists of a query");
            " const int* parents,"
        } else {
            writer
                .constant("SINK", self.sink, "first tokens, which are in no chunk")
                .constant("WINDOW", self.window, "most recent tokens, which every query sees")
                .constant("SCAN_WINDOW", self.scan_window, "chunks that begin nearer than this are not scanned")
                .constant("CHUNK", self.chunk, "tokens of a chunk");
            ""
        };
        writer.constant("THREADS", THREADS, "threads of a block");
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step,{lists} const unsigned* page_table, unsigned* tally, int keys_here) {{"
        ));
        let pages = if self.list.is_some() { LISTED } else { SEQUENCE };
        writer.more(PLACE).more(pages).more(ADD);
        let argument = |name, kind| Argument { name, kind };
        let input = ArgumentKind::Input;
        let mut arguments = vec![argument("step", input(Element::I32))];
        arguments.extend(self.list.map(|_| argument("parents", input(Element::I32))));
        arguments.push(argument("page_table", input(Element::U32)));
        arguments.push(argument("tally", ArgumentKind::Output(Element::U32)));
        arguments.push(argument("keys_here", ArgumentKind::I32));
        Kernel {
            name: name.to_owned(),
            family: Family::Move,
            text: writer.finish(),
            arguments,
            threads: THREADS,
            shared_bytes: 0,
        }
    }
}

const PLACE: &str = r"
    const int item = blockIdx.x * THREADS + threadIdx.x, items = gridDim.x * THREADS;
    unsigned here = 0, there = 0;
    const auto count = [&](int page) {
        const bool is_here = static_cast<int>(page_table[page]) < keys_here;
        here += is_here;
        there += !is_here;
    };
";

const SEQUENCE: &str = r"
    // The chunks of a list that is laid out for T_MAX keys, up to the last one that is scanned. The sequence is cut evenly.
    const int limit = step[STEP_START] - SCAN_WINDOW, all = (max(0, step[STEP_T_MAX] - SINK - WINDOW) + CHUNK - 1) / CHUNK;
    const int chunks = limit < SINK ? 0 : min(all, (limit - SINK) / CHUNK + 1);
    for (int chunk = item; chunk < chunks; chunk += items) {
        const int first = SINK + chunk * CHUNK;
        for (int page = first / PAGE; page <= (first + CHUNK - 1) / PAGE; ++page) count(page);
    }
";

const LISTED: &str = r"
    const int last = step[STEP_START] / PAGE;
    for (int entry = item; entry < LISTS * KEPT; entry += items) {
        const int* const list = parents + entry / KEPT * (KEPT + 1);
        if (entry % KEPT >= list[KEPT]) continue;
        const int first = list[entry % KEPT];
        for (int page = first / PAGE; page <= min((first + PARENT - 1) / PAGE, last); ++page) count(page);
    }
";

const ADD: &str = r"
    if (here > 0) atomic_add(&tally[HERE], here);
    if (there > 0) atomic_add(&tally[HERE + 1], there);
}
";
