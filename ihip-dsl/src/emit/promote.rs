//! Which pages come to the GPU after a step, and which leave it for them.
//!
//! A layer's pages lie in slots: those of the first slots have keys and values on the GPU, those of the next ones keys alone,
//! and the rest is with the host. A page comes to the GPU by trading its slot with one that leaves, so that every page has
//! one home and no slot is ever empty.

use super::functions::{Shape, whole_step_words};
use super::paging::MOST_MOVES;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Element, Family, Kernel, tally};
use crate::LayerPlan;

/// Threads of a block.
const THREADS: u32 = 512;

/// Missed pages of a step that are told apart; beyond them, which ones come is left to chance.
const LOG: usize = 512;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Promote {
    shape: Shape,
    sink: usize,
    window: usize,
    /// Tokens of a block of the list, entries of a list, and lists; `None` where there is none.
    list: Option<[usize; 3]>,
}

impl Promote {
    /// After a decoding step of `kind`: pages that it attended to. `None` where it attends to all of them, and none is
    /// worth more than another.
    pub(super) fn new(shape: Shape, kind: &LayerPlan) -> Option<Self> {
        let LayerPlan::Pruned(layer) = kind else { return None };
        let list = [layer.block, layer.keep_blocks, shape.rankings(layer.ranking)];
        let list = (!layer.stages.is_empty()).then_some(list);
        Some(Self { shape, sink: layer.sink, window: layer.window, list })
    }

    /// Before a step: only the page of the token that follows it.
    pub(super) const fn claim(shape: Shape) -> Self {
        Self { shape, sink: 0, window: 0, list: None }
    }

    const fn is_claim(&self) -> bool {
        self.sink + self.window == 0 && self.list.is_none()
    }

    pub(super) const fn has_list(&self) -> bool {
        self.list.is_some()
    }

    pub(super) fn stem(&self, pipeline: &str) -> String {
        let word = if self.is_claim() { "claim" } else { "promote" };
        let list = self.list.map(|[block, keep, _]| format!("_b{block}_k{}", block * keep)).unwrap_or_default();
        format!("ihip_{pipeline}_{word}{list}_{}", self.shape.suffix())
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = if self.is_claim() { CLAIM_HEADING } else { HEADING };
        let mut writer = Writer::new(heading, &format!("{pipeline}, promote"));
        writer.text(&whole_step_words());
        writer.text(&tally::words());
        writer.constant("PAGE", self.shape.geometry.page, "tokens of a page of the cache");
        if !self.is_claim() {
            writer.constant("SINK", self.sink, "first tokens, which every query sees").constant(
                "WINDOW",
                self.window,
                "most recent tokens, which every query sees",
            );
        }
        if let Some([block, keep, rankings]) = self.list {
            writer
                .constant("BLOCK", block, "tokens of a block of the list")
                .constant("KEEP", keep, "entries of a list; beyond its count they do not matter")
                .constant("LISTS", rankings, "lists of a query");
        }
        writer
            .constant("MOST_MOVES", MOST_MOVES, "pages that come at a time")
            .constant("LOG", LOG, "missed pages that are told apart")
            .constant("TRAVEL", 2 * THREADS, "slots that the hand passes at most, none of them more than twice")
            .constant("THREADS", THREADS, "threads of a block");
        let lists = if self.has_list() { " const int* lists, const int* counts," } else { "" };
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step,{lists} unsigned* page_table, unsigned* residents, unsigned* reads,\n    unsigned* hand, int* moves, unsigned* tally, int pages, int keys_here, int values_here) {{"
        ));
        writer.more(PLACE);
        if !self.is_claim() {
            writer.more(READ);
            if self.has_list() {
                writer.more(LISTED);
            }
            writer.more(SINKS_AND_WINDOW);
        }
        // A claim comes before its step: what the step writes is not there yet.
        let held = if self.is_claim() { "step[STEP_BEGIN]" } else { "next" };
        writer.text(&NEXT.replace("$HELD", held)).text(VICTIMS).text(TRADES);
        let argument = |name, kind| Argument { name, kind };
        let (input, output) = (ArgumentKind::Input, ArgumentKind::Output);
        let mut arguments = vec![argument("step", input(Element::I32))];
        if self.has_list() {
            arguments.extend(["lists", "counts"].map(|name| argument(name, input(Element::I32))));
        }
        let words = [
            ("page_table", Element::U32),
            ("residents", Element::U32),
            ("reads", Element::U32),
            ("hand", Element::U32),
            ("moves", Element::I32),
            ("tally", Element::U32),
        ];
        arguments.extend(words.map(|(name, element)| argument(name, output(element))));
        arguments.extend(["pages", "keys_here", "values_here"].map(|name| argument(name, ArgumentKind::I32)));
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

const HEADING: &str = "Notes which pages a step attended to, and lets those that it read on the host trade slots with pages on the GPU that
were not read for long: a hand goes round the slots, and a page that was read since it came by is passed over once.
One block, in no step's way: it runs beside the layers that follow.";

const CLAIM_HEADING: &str =
    "Sees to it that the page of the next token is on the GPU before it is written. A page that was not read for long
leaves for it: a hand goes round the slots, and a page that was read since it came by is passed over once. One block.";

const PLACE: &str = r"
    SHARED(int, log, LOG);
    SHARED(int, coming, MOST_MOVES);
    SHARED(int, victims, MOST_MOVES);
    SHARED(unsigned, seen, 3);
    SHARED(unsigned, logged, 1);
    SHARED(int, warp_victims, THREADS / 32);
    SHARED(int, stopped, 1);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int next = step[STEP_END];
    // What a slot remembers: when it was last read, and in bit 0 whether the hand has not come by since.
    const unsigned now = 2u * static_cast<unsigned>(next) + 1u;
    if (thread < 3) seen[thread] = 0;
    if (thread == 0) logged[0] = 0;
    sync_block();
";

const READ: &str = r"
    // A page is counted, and logged where it was missed, by whichever thread comes first.
    const auto read = [&](int page) {
        const int slot = static_cast<int>(page_table[page]);
        if (atomic_max(&reads[slot], now) >= now) return;
        atomic_add(&seen[slot < values_here ? 0 : slot < keys_here ? 1 : 2], 1u);
        // What is not here is full: it was opened here and left when it was.
        if (slot < values_here) return;
        const int at = static_cast<int>(atomic_add(&logged[0], 1u));
        if (at < LOG) log[at] = page;
    };
";

const LISTED: &str = r"
    for (int entry = thread; entry < LISTS * KEEP; entry += THREADS) {
        if (entry % KEEP >= counts[entry / KEEP]) continue;
        const int first = lists[entry], last = min(first + BLOCK, next) - 1;
        for (int page = first / PAGE; page <= last / PAGE; ++page) read(page);
    }
";

const SINKS_AND_WINDOW: &str = r"
    for (int page = thread; page * PAGE < min(SINK, next); page += THREADS) read(page);
    for (int page = max(0, next - WINDOW) / PAGE + thread; page * PAGE < next; page += THREADS) read(page);
";

const NEXT: &str = r"
    // The page of the next token is on the GPU before it is written, and stays there until it is full.
    const int held = $HELD, opened = next / PAGE;
    sync_block();  // every read is noted
    bool opens = false;
    if (opened < pages) {
        const int slot = static_cast<int>(page_table[opened]);
        opens = slot >= values_here && opened * PAGE >= held;
        // Neither this page leaves nor the one that is being filled.
        if (thread == 0) reads[slot] = now;
        if (thread == 1 && held / PAGE < opened) reads[page_table[held / PAGE]] = now;
    }
    sync_block();
    // Newest first: an order that no thread's luck decides.
    const int missed = min(static_cast<int>(logged[0]), LOG), first = opens ? 1 : 0;
    const int wanted = min(missed + first, MOST_MOVES);
    if (thread == 0 && opens) coming[0] = opened;
    for (int i = thread; i < missed; i += THREADS) {
        int rank = first;
        for (int j = 0; j < missed; ++j) rank += log[j] > log[i];
        if (rank < MOST_MOVES) coming[rank] = log[i];
    }
";

const VICTIMS: &str = r"
    const int span = min(THREADS, values_here);
    int at = static_cast<int>(hand[0]), found = 0;
    for (int passed = 0; passed < min(TRAVEL, 2 * values_here) && found < wanted; passed += span) {
        const int slot = thread < span ? (at + thread) % values_here : 0;
        const unsigned last = reads[slot];
        const bool leaves = thread < span && last % 2 == 0 && last + 1 < now;
        const unsigned leaving = ballot(leaves);
        if (lane == 0) warp_victims[warp] = __popc(leaving);
        if (thread == 0) stopped[0] = span;
        sync_block();
        int rank = found + __popc(leaving & ((1u << lane) - 1u)), all = found;
        for (int other = 0; other < THREADS / 32; ++other) {
            if (other < warp) rank += warp_victims[other];
            all += warp_victims[other];
        }
        const bool is_victim = leaves && rank < wanted;
        if (is_victim) victims[rank] = slot;
        if (leaves && rank == wanted - 1) stopped[0] = thread + 1;
        sync_block();
        const int stop = stopped[0];
        // A victim is not found again where the hand comes round.
        if (is_victim) reads[slot] = now;
        if (thread < stop && last % 2 == 1) reads[slot] = last - 1;
        at = (at + stop) % values_here;
        found = min(all, wanted);
        sync_block();
    }
    // Where all that is on the GPU was read in this very step, the hand's slot goes to the page that is opened.
    if (found == 0 && opens) {
        if (thread == 0) victims[0] = at;
        at = (at + 1) % values_here;
        found = 1;
    }
    sync_block();
";

const TRADES: &str = r"
    // A trade is two slots, and which of the two pages holds tokens.
    for (int i = thread; i < found; i += THREADS) {
        const int page = coming[i], here = victims[i], there = static_cast<int>(page_table[page]);
        const int leaving = static_cast<int>(residents[here]);
        const bool comes = page * PAGE < held, leaves = leaving * PAGE < held;
        int* const move = moves + 1 + 4 * i;
        move[0] = there;
        move[1] = here;
        move[2] = comes;
        move[3] = leaves;
        page_table[page] = static_cast<unsigned>(here);
        page_table[leaving] = static_cast<unsigned>(there);
        residents[here] = static_cast<unsigned>(page);
        reads[here] = now;
        reads[there] = 0;
        const int beside = there < keys_here ? 0 : 1;
        if (comes) atomic_add(&tally[PROMOTED_VALUES + beside], 1u);
        if (leaves) atomic_add(&tally[EVICTED_VALUES + beside], 1u);
    }
    if (thread < 3) tally[READ_HERE + thread] += seen[thread];
    if (thread > 0) return;
    moves[0] = found;
    hand[0] = static_cast<unsigned>(at);
}
";
