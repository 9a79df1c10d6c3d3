//! Requests on caches of two tiers whose pages the generated kernels move, and a kernel in the attention's place.
//!
//! What a scan would find is drawn, so that pages move more than any prompt would have them: lists of blocks, where the clock's
//! hand is, what was read when. Everything else is launched as a device does.

use std::collections::BTreeSet;
use std::ops::Range;

use ihip_dsl::emit::{Activation, Buffer, Extent, Family, Program, tally};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{AttendRope, KvType, Renewal, ScanRope};
use ihip_runtime::kv::{Kind, Row, Tier};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::{Handle, Host, Shared, host};
use ihip_tests::support::sample::Random;

use super::Report;
use super::rows::{EVERYTHING, FOUND, KEYS, PAGES, Probed, Rows, VALUES, Verifier, elements};
use crate::families::{Layer, layer, stage};

const QUERY_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const PAGE: usize = 8;
const SINK: usize = 8;
const WINDOW: usize = 24;
const CHUNK: usize = 12;
const QUERY_BLOCK: usize = 16;
/// Tokens of a block of a list, and blocks of it.
const BLOCK: usize = 4;
const KEEP: usize = 6;
/// Tokens of a request, and rows of a call.
const TOKENS: usize = 256;
const ROWS: usize = 48;
/// First halvings whose probes stay on the GPU.
const LEVELS: usize = 2;
/// Slots on the GPU for the keys and for the values of each request: 64 in all, for three times as many pages.
const SLOTS: [[usize; 2]; 3] = [[12, 9], [10, 10], [13, 10]];
/// Types of caches, which take turns: with scales and without.
pub const TYPES: [KvType; 2] = [KvType::F32, KvType::Int4];
/// Operations after which what was found is asked for.
const ASKED: u64 = 256;

/// A request, and the memory that the next one takes over.
struct Request {
    /// It has a number of its own.
    number: u32,
    length: usize,
    attention: Attention,
    verifier: Verifier,
    kv_type: KvType,
    /// Slots whose values are on the GPU.
    values: usize,
}

/// A call of a prefill step: positions of its rows, and a list for each of its query blocks.
struct Call {
    rows: Range<usize>,
    lists: Vec<Vec<i32>>,
}

/// Requests side by side.
pub struct Requests {
    host: Shared,
    requests: Vec<Request>,
    /// [`FOUND`] words.
    found: Handle,
    draws: Random,
    /// Requests that had a number.
    numbered: u32,
    operations: u64,
    report: Report,
    /// Pages whose values came for prefill, and pages that went home after it.
    prefilled: [u64; 2],
}

fn of_type(kv_type: KvType) -> Layer {
    let stages = [stage(0, CHUNK as u32, QUERY_BLOCK as u32, 2), stage(48, BLOCK as u32, QUERY_BLOCK as u32, 1)];
    layer(
        (QUERY_HEADS as u32, KV_HEADS as u32, HEAD_DIM as u32),
        kv_type,
        PAGE as u32,
        (SINK as u32, WINDOW as u32),
        &stages,
        (KEEP * BLOCK) as u32,
        (ScanRope::Relative, AttendRope::Streaming),
    )
}

/// What verifies rows of this type.
pub fn verifier(kv_type: KvType) -> Verifier {
    Verifier::new(&of_type(kv_type).geometry(), Probed { sink: SINK, chunk: CHUNK, levels: LEVELS })
}

impl Request {
    fn new(host: Shared, number: u32, kv_type: KvType, slots: [usize; 2]) -> Self {
        let plan = of_type(kv_type).plan();
        let program = Program::with(&plan, Activation::F32, host.instructions(), Tunings::default());
        let program = program.expect("a usual head").keeping_probes(LEVELS);
        let extent = Extent { rows: ROWS, tokens: TOKENS };
        Self {
            number,
            length: 0,
            attention: Attention::tiered(Box::new(host), program, extent, slots),
            verifier: verifier(kv_type),
            kv_type,
            values: slots[1],
        }
    }

    /// Queries, keys and values of some tokens.
    fn qkv(&self, tokens: Range<usize>) -> Vec<f32> {
        let mut qkv = Vec::new();
        for token in tokens {
            qkv.extend(std::iter::repeat_n(0.5, QUERY_HEADS * HEAD_DIM));
            for (kind, head) in Kind::ALL.into_iter().flat_map(|kind| (0..KV_HEADS).map(move |head| (kind, head))) {
                qkv.extend(elements(self.number, Row { layer: 0, kind, head, token }, HEAD_DIM));
            }
        }
        qkv
    }

    /// Verifies all tokens wherever they are.
    fn verify(&mut self, regions: Range<usize>, found: Handle) {
        let Self { number, length, attention, verifier, .. } = self;
        let rows = Rows { request: *number, layer: 0, regions, tokens: 0..*length };
        verify(attention, verifier, &rows, [Buffer::Keys, Buffer::Values], found);
    }

    /// A decoding step, whose list was drawn.
    fn decode(&mut self, renewal: Renewal, found: Handle) {
        let qkv = self.qkv(self.length..self.length + 1);
        let launches = self.attention.begin_decode(self.length, TOKENS, renewal, &qkv);
        self.length += 1;
        // A step that renews nothing has one kernel, which appends before it attends.
        let appends = launches.len() == 1;
        for launch in &launches {
            match self.attention.family(launch) {
                // The step's own key is kept among those that are probed first once it has run.
                Family::Attend if !appends => self.verify(PAGES, found),
                Family::Attend | Family::Append => self.attention.launch(std::slice::from_ref(launch)),
                _ => {}
            }
        }
        let moves = self.attention.moves(renewal);
        self.attention.launch(&moves);
    }

    /// A step of prefill whose lists were drawn.
    fn prefill(&mut self, calls: &[Call], found: Handle) {
        let qkv: Vec<_> = calls.iter().map(|call| self.qkv(call.rows.clone())).collect();
        let qkv: Vec<&[f32]> = qkv.iter().map(Vec::as_slice).collect();
        let Self { number, length, attention, verifier, .. } = self;
        let mut calls = calls.iter();
        attention.prefill_calls(*length, TOKENS, &qkv, |attention, positions, launches| {
            let call = calls.next().expect("there are as many");
            let mut blocks = vec![-1; call.lists.len() * KEEP];
            for (entries, list) in blocks.chunks_mut(KEEP).zip(&call.lists) {
                entries[..list.len()].copy_from_slice(list);
            }
            attention.write_i32(Buffer::Blocks, &blocks);
            attention.write_i32(Buffer::Counts, &call.lists.iter().map(|list| list.len() as i32).collect::<Vec<_>>());
            let attends = launches.iter().filter(|launch| attention.family(launch) == Family::Attend).count();
            assert_eq!(attends, 1, "a call attends once");
            for launch in launches {
                match attention.family(launch) {
                    // In its place: scans read all keys, and the attention values of sinks, windows and lists.
                    Family::Attend => {
                        let looked = call.looked().into_iter().map(|tokens| (VALUES, tokens));
                        for (regions, tokens) in looked.chain([(KEYS, 0..positions.end)]) {
                            let rows = Rows { request: *number, layer: 0, regions, tokens };
                            verify(attention, verifier, &rows, [Buffer::StagedKeys, Buffer::StagedValues], found);
                        }
                    }
                    Family::Append | Family::Move => attention.launch(std::slice::from_ref(launch)),
                    _ => {}
                }
            }
            *length = positions.end;
        });
    }

    /// Spoils a value of its second head whose page is in `tier`, or a key that is kept besides; whether there is one.
    fn spoil(&mut self, tier: Tier, kept: bool) -> bool {
        if kept {
            let any = self.length > SINK + CHUNK;
            if any {
                self.attention.spoil(Buffer::Probes, 0);
            }
            return any;
        }
        let table = self.attention.read_i32(Buffer::PageTable);
        let tier_of = |token: usize| if (table[token / PAGE] as usize) < self.values { Tier::Gpu } else { Tier::Host };
        let Some(token) = (0..self.length).find(|token| tier_of(*token) == tier) else { return false };
        let head = table[token / PAGE] as usize * KV_HEADS + 1;
        let row = token % PAGE * self.kv_type.number_bytes(HEAD_DIM);
        self.attention.spoil(Buffer::Values, head * self.kv_type.page_bytes(PAGE, HEAD_DIM) + row);
        true
    }

    /// Another request in its place.
    fn replace(&mut self, number: u32) {
        self.attention.restart();
        self.number = number;
        self.length = 0;
    }
}

impl Call {
    /// Tokens whose values are looked at, some of them twice.
    fn looked(&self) -> Vec<Range<usize>> {
        let Range { start, end } = self.rows;
        let blocks: BTreeSet<usize> = self.lists.iter().flatten().map(|first| *first as usize).collect();
        let seen = [0..SINK.min(end), (start + 1).saturating_sub(WINDOW)..end];
        seen.into_iter().chain(blocks.into_iter().map(|first| first..first + BLOCK)).collect()
    }
}

fn verify(attention: &mut Attention, verifier: &Verifier, rows: &Rows, from: [Buffer; 2], found: Handle) {
    let (grid, arguments) = verifier.launch(rows, from);
    attention.launch_beside(&verifier.kernel, grid, &arguments, found);
}

impl Requests {
    pub fn new(seed: u64) -> Self {
        let mut host = Shared::new(host());
        let found = host.allocate("Found", FOUND * 4);
        host.write(found, 0, &[0; FOUND * 4]);
        let requests = SLOTS.into_iter().zip(TYPES.into_iter().cycle()).zip(0..);
        let request = |((slots, kv_type), number)| Request::new(host.clone(), number, kv_type, slots);
        let requests: Vec<_> = requests.map(request).collect();
        let numbered = requests.len() as u32;
        let (draws, report) = (Random(seed), Report::default());
        Self { host, requests, found, draws, numbered, operations: 0, report, prefilled: [0; 2] }
    }

    fn below(&mut self, end: usize) -> usize {
        (self.draws.next() % end as u64) as usize
    }

    /// One operation, whichever is drawn, on one of the requests; then its rows are verified.
    pub fn operate(&mut self) {
        let index = self.below(self.requests.len());
        if self.requests[index].length == TOKENS {
            self.replace(index);
            self.report.ended += 1;
        }
        if self.below(3) == 0 {
            self.scramble(index);
        }
        match self.below(100) {
            // A request begins with a prompt.
            _ if self.requests[index].length == 0 => self.prefill(index),
            0..72 => self.decode(index),
            72..88 => self.promote(index),
            88..98 => self.prefill(index),
            _ => {
                self.replace(index);
                self.report.cancelled += 1;
            }
        }
        let request = &mut self.requests[index];
        if request.length > 0 {
            request.verify(EVERYTHING, self.found);
        }
        self.operations += 1;
        if self.operations.is_multiple_of(ASKED) {
            self.ask();
        }
    }

    /// The list of a query: different blocks between sinks and window, in their order.
    fn list(&mut self, position: usize) -> Vec<i32> {
        let (blocks, listed) = ((position + 1).saturating_sub(SINK + WINDOW) / BLOCK, self.below(KEEP + 1));
        let listed = if blocks > 0 { listed } else { 0 };
        let blocks: BTreeSet<usize> = (0..listed).map(|_| self.below(blocks)).collect();
        blocks.into_iter().map(|block| (SINK + block * BLOCK) as i32).collect()
    }

    /// What decoding steps attend to until it is renewed.
    fn draw_list(&mut self, index: usize) {
        let list = self.list(self.requests[index].length);
        let attention = &mut self.requests[index].attention;
        attention.write_i32(Buffer::CachedBlocks, &list);
        attention.write_i32(Buffer::CachedCount, &[list.len() as i32]);
    }

    fn decode(&mut self, index: usize) {
        self.draw_list(index);
        let renewal = [None, Some(0), Some(0), Some(1)][self.below(4)];
        self.requests[index].decode(renewal.into(), self.found);
    }

    /// Pages move once more after the last step, for another list.
    fn promote(&mut self, index: usize) {
        self.draw_list(index);
        self.scramble(index);
        let attention = &mut self.requests[index].attention;
        let moves = attention.moves(Renewal::default());
        attention.launch(&moves);
    }

    /// As if pages had been read at other times, and the clock's hand were elsewhere.
    fn scramble(&mut self, index: usize) {
        let now = 2 * self.requests[index].length + 2;
        let reads: Vec<i32> = (0..TOKENS / PAGE).map(|_| self.below(now) as i32).collect();
        let hand = self.below(self.requests[index].values) as i32;
        let attention = &mut self.requests[index].attention;
        attention.write_i32(Buffer::Reads, &reads);
        attention.write_i32(Buffer::Hand, &[hand]);
    }

    /// A step of one call or of two.
    fn prefill(&mut self, index: usize) {
        let mut end = self.requests[index].length;
        let mut calls = Vec::new();
        for _ in 0..1 + self.below(2) {
            if end < TOKENS {
                let rows = end..end + 1 + self.below(ROWS.min(TOKENS - end));
                end = rows.end;
                let lists = rows.clone().step_by(QUERY_BLOCK).map(|first| self.list(first)).collect();
                calls.push(Call { rows, lists });
            }
        }
        self.requests[index].prefill(&calls, self.found);
    }

    /// Another request takes the place of one that ended or was cancelled.
    fn replace(&mut self, index: usize) {
        let counted = self.requests[index].attention.read_i32(Buffer::Tally);
        let of = |words: &[usize]| words.iter().map(|word| counted[*word] as u64).sum::<u64>();
        let Report { hits, misses, promotions, evictions, .. } = &mut self.report;
        *hits += of(&[tally::READ_HERE, tally::READ_HERE, tally::READ_KEYS_HERE]);
        *misses += of(&[tally::READ_THERE, tally::READ_THERE, tally::READ_KEYS_HERE]);
        *promotions += of(&[tally::PROMOTED_VALUES, tally::PROMOTED]);
        *evictions += of(&[tally::EVICTED_VALUES, tally::EVICTED]);
        self.prefilled[0] += of(&[tally::GATHERED]);
        self.prefilled[1] += of(&[tally::WRITTEN_KEYS, tally::WRITTEN_VALUES]);
        self.requests[index].replace(self.numbered);
        self.numbered += 1;
    }

    /// What the kernel found so far.
    fn ask(&mut self) {
        let words = self.host.read(self.found, 0, FOUND * 4);
        let [verified, wrong] =
            [0, 1].map(|word| u32::from_ne_bytes(words[4 * word..][..4].try_into().expect("a word")));
        self.host.write(self.found, 0, &[0; FOUND * 4]);
        self.report.verified += u64::from(verified);
        self.report.wrong += u64::from(wrong);
    }

    /// What was seen, the requests that are still there among it: others take their places.
    pub fn report(&mut self) -> Report {
        self.ask();
        (0..self.requests.len()).for_each(|index| self.replace(index));
        self.report
    }

    /// Pages whose values came for steps of prefill, and pages of keys or values that went home after them, until the report.
    pub const fn prefilled(&self) -> [u64; 2] {
        self.prefilled
    }

    /// Spoils a value whose page is in `tier`, or a key that is kept on the GPU besides where `kept` says so. Returns how many
    /// rows are wrong then; `None` where no request has such a row.
    pub fn spoil(&mut self, tier: Tier, kept: bool) -> Option<u64> {
        let before = self.report.wrong;
        let request = self.requests.iter_mut().find_map(|request| request.spoil(tier, kept).then_some(request))?;
        request.verify(EVERYTHING, self.found);
        self.ask();
        Some(self.report.wrong - before)
    }
}
