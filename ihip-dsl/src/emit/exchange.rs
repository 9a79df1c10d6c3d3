//! Pages change places: two trade slots, or a page is copied to and from where a prompt is read.

use super::functions::{Shape, step_words, whole_step_words};
use super::paging::MOST_MOVES;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Element, Family, Kernel, tally};
use crate::{LayerPlan, PrunedLayer};

/// Threads of a block.
const THREADS: u32 = 256;

/// Copies under way in a thread at a time, of 16 bytes each.
const BATCH: usize = 4;

/// The kernel that lets pages trade slots, as `promote` says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exchange {
    pub(super) shape: Shape,
}

/// The kernel that brings values that a step of prefill attends to to the GPU, each page once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gather {
    shape: Shape,
    layer: PrunedLayer,
}

/// The kernel that takes pages home that a step of prefill has filled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WriteBack {
    pub(super) shape: Shape,
}

/// Constants of a copy.
fn constants(writer: &mut Writer, shape: Shape) {
    writer
        .constant("PAGE", shape.geometry.page, "tokens of a page of the cache")
        .constant("PIECES", shape.page_bytes() / 16, "copies of 16 bytes to a page of keys, or of values")
        .constant("BATCH", BATCH, "copies that a thread has under way")
        .constant("THREADS", THREADS, "threads of a block");
}

fn input(name: &'static str, element: Element) -> Argument {
    Argument { name, kind: ArgumentKind::Input(element) }
}

fn output(name: &'static str) -> Argument {
    Argument { name, kind: ArgumentKind::Output(Element::U32) }
}

fn number(name: &'static str) -> Argument {
    Argument { name, kind: ArgumentKind::I32 }
}

fn kernel(name: &str, text: String, arguments: Vec<Argument>) -> Kernel {
    Kernel { name: name.to_owned(), family: Family::Move, text, arguments, threads: THREADS, shared_bytes: 0 }
}

impl Exchange {
    pub(super) fn stem(&self, pipeline: &str) -> String {
        format!("ihip_{pipeline}_exchange_{}", self.shape.suffix())
    }

    /// Blocks of threads: one a trade of keys, and one of values.
    pub(super) const fn grid() -> [u32; 3] {
        [MOST_MOVES as u32, 2, 1]
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = "Pages trade slots, over the bus where one of them is the host's. No step reads either meanwhile. A block of threads\ntakes the keys of two pages, or their values.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, exchange"));
        constants(&mut writer, self.shape);
        writer.text(WORDS);
        writer.text(&format!("KERNEL(THREADS) {name}(const int* moves, unsigned* keys, unsigned* values) {{"));
        writer.more(EXCHANGE);
        kernel(name, writer.finish(), vec![input("moves", Element::I32), output("keys"), output("values")])
    }
}

impl Gather {
    /// `None` where a step of prefill attends to no pages but those near it: they are read where they are.
    pub(super) fn new(shape: Shape, kind: &LayerPlan) -> Option<Self> {
        match kind {
            LayerPlan::Pruned(layer) if !layer.stages.is_empty() => Some(Self { shape, layer: layer.clone() }),
            LayerPlan::Pruned(_) | LayerPlan::Dense => None,
        }
    }

    pub(super) fn stem(&self, pipeline: &str) -> String {
        let PrunedLayer { block, keep_blocks, .. } = self.layer;
        format!("ihip_{pipeline}_gather_b{block}_k{}_{}", block * keep_blocks, self.shape.suffix())
    }

    /// Pages that a block of the list can lie in.
    fn pages_each(&self) -> usize {
        let (block, page) = (self.layer.block, self.shape.geometry.page as usize);
        // Blocks begin at multiples of their size after the sinks.
        if page.is_multiple_of(block) && self.layer.sink.is_multiple_of(block) {
            return 1;
        }
        (block + page - 2) / page + 1
    }

    /// Blocks of threads for `rows` rows: a thread looks at a page of the list, and a warp copies those that it misses.
    pub(super) fn grid(&self, rows: usize) -> [u32; 3] {
        let lists = rows.div_ceil(self.layer.query_block) * self.shape.rankings(self.layer.ranking);
        let entries = lists * self.layer.keep_blocks * self.pages_each();
        [entries.div_ceil(THREADS as usize).clamp(1, 2048) as u32, 1, 1]
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = "Prefill: brings the values of the pages that a step attends to from the host to where it reads them, each page once.\nPages of the step itself are there already.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, gather"));
        writer.text(&whole_step_words());
        writer.text(&tally::words());
        let layer = &self.layer;
        writer
            .constant("SINK", layer.sink, "first tokens, which every query sees")
            .constant("WINDOW", layer.window, "most recent tokens, which every query sees")
            .constant("QUERY_BLOCK", layer.query_block, "queries that share a block list")
            .constant("LISTS", self.shape.rankings(layer.ranking), "lists of a query block")
            .constant("BLOCK", layer.block, "tokens of a block of the list")
            .constant("KEEP", layer.keep_blocks, "entries of a list; beyond its count they do not matter")
            .constant("PAGES_EACH", self.pages_each(), "pages that a block can lie in");
        constants(&mut writer, self.shape);
        writer.text(WORDS);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const int* lists, const int* counts, const unsigned* page_table, const unsigned* values,\n    unsigned* staged_values, unsigned* reads, unsigned* tally, int values_here) {{"
        ));
        writer.more(GATHER);
        let mut arguments =
            vec![input("step", Element::I32), input("lists", Element::I32), input("counts", Element::I32)];
        arguments.extend(["page_table", "values"].map(|name| input(name, Element::U32)));
        arguments.extend(["staged_values", "reads", "tally"].map(output));
        arguments.push(number("values_here"));
        kernel(name, writer.finish(), arguments)
    }
}

impl WriteBack {
    pub(super) fn stem(&self, pipeline: &str) -> String {
        format!("ihip_{pipeline}_write_back_{}", self.shape.suffix())
    }

    /// Blocks of threads for `rows` rows: one for a page of keys, and one for a page of values.
    pub(super) fn grid(&self, rows: usize) -> [u32; 3] {
        [(rows / self.shape.geometry.page as usize + 1) as u32, 2, 1]
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = "Prefill: takes pages home that the step has filled, keys and values each once. The page that is not full yet is at home\nalready, on the GPU.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, write back"));
        writer.text(&step_words());
        writer.text(&tally::words());
        constants(&mut writer, self.shape);
        writer.text(WORDS);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const unsigned* page_table, const unsigned* staged_keys, const unsigned* staged_values,\n    unsigned* keys, unsigned* values, unsigned* tally, int keys_here, int values_here) {{"
        ));
        writer.more(WRITE_BACK);
        let mut arguments = vec![input("step", Element::I32)];
        arguments.extend(["page_table", "staged_keys", "staged_values"].map(|name| input(name, Element::U32)));
        arguments.extend(["keys", "values", "tally"].map(output));
        arguments.extend(["keys_here", "values_here"].map(number));
        kernel(name, writer.finish(), arguments)
    }
}

const WORDS: &str = r"
// Sixteen bytes of a page, whatever they mean.
struct alignas(16) Words {
    unsigned at[4];
};

// Where a slot begins.
inline Words* slot_of(unsigned* region, int slot) {
    return reinterpret_cast<Words*>(region) + static_cast<unsigned long long>(slot) * PIECES;
}

inline const Words* slot_of(const unsigned* region, int slot) {
    return reinterpret_cast<const Words*>(region) + static_cast<unsigned long long>(slot) * PIECES;
}
";

const EXCHANGE: &str = r"
    const int trade = blockIdx.x, thread = threadIdx.x;
    if (trade >= moves[0]) return;
    const int* const move = moves + 1 + 4 * trade;
    unsigned* const region = blockIdx.y == 0 ? keys : values;
    Words* const there = slot_of(region, move[0]);
    Words* const here = slot_of(region, move[1]);
    // A page without tokens leaves nothing behind.
    const bool comes = move[2] != 0, leaves = move[3] != 0;
    for (int first = thread; first < PIECES; first += BATCH * THREADS) {
        Words coming[BATCH], leaving[BATCH];
        for (int i = 0; i < BATCH; ++i) {
            const int piece = min(first + i * THREADS, PIECES - 1);
            if (comes) coming[i] = there[piece];
            if (leaves) leaving[i] = here[piece];
        }
        for (int i = 0; i < BATCH; ++i) {
            const int piece = first + i * THREADS;
            if (piece >= PIECES) break;
            if (comes) here[piece] = coming[i];
            if (leaves) there[piece] = leaving[i];
        }
    }
}
";

const GATHER: &str = r"
    const int start = step[STEP_START], rows = step[STEP_ROWS];
    const int thread = threadIdx.x, lane = thread % 32;
    const unsigned now = 2u * static_cast<unsigned>(step[STEP_END]) + 1u;
    // Pages of earlier steps: of the lists, of the sinks, and of the first query's window.
    const int before = step[STEP_BEGIN] / PAGE;
    const int listed = (rows + QUERY_BLOCK - 1) / QUERY_BLOCK * LISTS * KEEP * PAGES_EACH;
    // The first page is among them in any case: an empty slot of a tile reads token 0, and weighs it with 0.
    const int sinks = min(max((SINK + PAGE - 1) / PAGE, 1), before), recent = max(0, start - WINDOW + 1) / PAGE;
    const int items = listed + sinks + max(0, before - recent);
    for (int first = blockIdx.x * THREADS + thread - lane; first < items; first += gridDim.x * THREADS) {
        const int item = first + lane, entry = item / PAGES_EACH;
        int page = before;
        if (item < listed) {
            if (entry % KEEP < counts[entry / KEEP]) {
                const int in_block = lists[entry] / PAGE + item % PAGES_EACH;
                if (in_block <= (lists[entry] + BLOCK - 1) / PAGE) page = in_block;
            }
        } else if (item < listed + sinks) {
            page = item - listed;
        } else if (item < items) {
            page = recent + item - listed - sinks;
        }
        int slot = 0;
        if (page < before) slot = static_cast<int>(page_table[page]);
        // Many queries attend to a page: whoever comes first copies it.
        const bool is_first = page < before && atomic_max(&reads[slot], now) < now;
        unsigned missed = ballot(is_first && slot >= values_here);
        if (lane == 0 && missed != 0) atomic_add(&tally[GATHERED], static_cast<unsigned>(__popc(missed)));
        for (; missed != 0; missed &= missed - 1) {
            const int copied = shuffle(slot, __popc(~missed & (missed - 1)));
            const Words* const from = slot_of(values, copied);
            Words* const to = slot_of(staged_values, copied);
            for (int part = lane; part < PIECES; part += BATCH * 32) {
                Words words[BATCH];
                for (int i = 0; i < BATCH; ++i) words[i] = from[min(part + i * 32, PIECES - 1)];
                for (int i = 0; i < BATCH && part + i * 32 < PIECES; ++i) to[part + i * 32] = words[i];
            }
        }
    }
}
";

const WRITE_BACK: &str = r"
    const int page = step[STEP_START] / PAGE + blockIdx.x, thread = threadIdx.x;
    if ((page + 1) * PAGE > step[STEP_START] + step[STEP_ROWS]) return;
    const int slot = static_cast<int>(page_table[page]);
    const bool is_key = blockIdx.y == 0;
    if (slot < (is_key ? keys_here : values_here)) return;
    const Words* const from = slot_of(is_key ? staged_keys : staged_values, slot);
    Words* const to = slot_of(is_key ? keys : values, slot);
    for (int first = thread; first < PIECES; first += BATCH * THREADS) {
        Words words[BATCH];
        for (int i = 0; i < BATCH; ++i) words[i] = from[min(first + i * THREADS, PIECES - 1)];
        for (int i = 0; i < BATCH && first + i * THREADS < PIECES; ++i) to[first + i * THREADS] = words[i];
    }
    if (thread == 0) atomic_add(&tally[is_key ? WRITTEN_KEYS : WRITTEN_VALUES], 1u);
}
";
