//! Requests that do anything, and what their rows must hold.

use std::sync::Arc;

use ihip_runtime::kv::budget::{Room, Slots};
use ihip_runtime::kv::{Allocate, Counts, Kind, KvError, Process, Row, Sequence, Shape, Store, Tier};
use ihip_tests::support::sample::Random;

/// Few and small: what goes wrong goes wrong in the bookkeeping.
pub const SHAPE: Shape = Shape { layers: 2, kv_heads: 2, head_dim: 4, page: 4, rows: 16 };
/// 64 slots on the GPU for keys and values of both layers.
pub const ROOM: Room = Room { keys: Slots { gpu: 20, host: 50 }, values: Slots { gpu: 12, host: 58 } };
/// Requests at a time.
const MOST: usize = 6;

/// A request: its pages, and a name for each of its tokens that no other token ever had.
struct Request {
    sequence: Sequence,
    names: Vec<u64>,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that were read and compared.
    pub verified: u64,
    /// Rows among them that hold something else.
    pub wrong: u64,
    /// Operations for which there was no room.
    pub refused: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that were forked.
    pub forked: u64,
}

/// Requests over one store.
pub struct Requests {
    store: Store,
    requests: Vec<Request>,
    draws: Random,
    /// Tokens that were named.
    named: u64,
    report: Report,
}

impl Requests {
    pub fn new(seed: u64) -> Self {
        let process: Arc<dyn Allocate> = Arc::new(Process);
        Self::within(seed, &process).expect("memory for small tiers")
    }

    pub fn within(seed: u64, allocator: &Arc<dyn Allocate>) -> Result<Self, KvError> {
        let store = Store::new(SHAPE, ROOM, allocator)?;
        Ok(Self { store, requests: Vec::new(), draws: Random(seed), named: 0, report: Report::default() })
    }

    pub const fn report(&self) -> Report {
        self.report
    }

    pub fn counts(&self) -> Counts {
        self.store.counts()
    }

    pub fn taken(&self, tier: Tier) -> usize {
        self.store.taken(tier)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.draws.next() % end as u64) as usize
    }

    /// One operation, whichever is drawn.
    pub fn operate(&mut self) {
        match self.below(100) {
            0..8 => self.begin(),
            8..40 => self.step(1),
            40..48 => {
                let rows = 1 + self.below(SHAPE.rows);
                self.step(rows);
            }
            48..62 => self.move_page(Tier::Host),
            62..76 => self.move_page(Tier::Gpu),
            76..88 => {
                let (layer, kind) = self.region();
                let looks = self.below(2) == 0;
                self.store.copy_one(layer, kind, looks);
            }
            88..92 => self.fork(),
            92..96 => self.cancel(),
            _ => self.store.settle(),
        }
    }

    fn region(&mut self) -> (usize, Kind) {
        (self.below(SHAPE.layers), Kind::ALL[self.below(2)])
    }

    fn drawn(&mut self) -> Option<usize> {
        let count = self.requests.len();
        (count > 0).then(|| self.below(count))
    }

    fn begin(&mut self) {
        if self.requests.len() < MOST {
            self.requests.push(Request { sequence: Sequence::default(), names: Vec::new() });
        }
    }

    /// Prefill or decode: appends tokens in every layer, then reads some of the rows before them, or all.
    fn step(&mut self, tokens: usize) {
        let Some(index) = self.drawn() else { return };
        let Self { store, requests, named, .. } = self;
        let Request { sequence, names } = &mut requests[index];
        if let Err(error) = store.reserve(sequence, tokens) {
            assert!(matches!(error, KvError::Full { .. }), "{error}");
            self.report.refused += 1;
            return;
        }
        for _ in 0..tokens {
            names.push(*named);
            *named += 1;
        }
        let first = sequence.length();
        for (token, name) in names.iter().enumerate().skip(first) {
            for row in rows(token) {
                let expected = expected(*name, row);
                store.row_mut(sequence, row).copy_from_slice(&expected);
            }
        }
        store.commit(sequence, tokens);
        let step = [1, 3, 7][self.below(3)];
        self.read(index, step);
    }

    /// Compares the rows of every `step`-th token.
    fn read(&mut self, index: usize, step: usize) {
        let Self { store, requests, report, .. } = self;
        let Request { sequence, names } = &requests[index];
        for (token, name) in names.iter().enumerate().step_by(step) {
            for row in rows(token) {
                report.verified += 1;
                if store.row(sequence, row) != expected(*name, row) {
                    report.wrong += 1;
                }
            }
        }
    }

    /// Compares every row there is.
    pub fn read_all(&mut self) {
        (0..self.requests.len()).for_each(|index| self.read(index, 1));
    }

    /// Begins to move a page, which may be moving, be shared, or still be written.
    fn move_page(&mut self, tier: Tier) {
        let Some(index) = self.drawn() else { return };
        let pages = self.requests[index].sequence.pages().len();
        if pages > 0 {
            let number = self.below(pages);
            let page = self.requests[index].sequence.pages()[number];
            let (layer, kind) = self.region();
            self.store.begin(layer, kind, page, tier);
        }
    }

    fn fork(&mut self) {
        let Some(index) = self.drawn().filter(|_| self.requests.len() < MOST) else { return };
        match self.store.fork(&self.requests[index].sequence) {
            Ok(sequence) => {
                let names = self.requests[index].names.clone();
                self.requests.push(Request { sequence, names });
                self.report.forked += 1;
            }
            Err(_) => self.report.refused += 1,
        }
    }

    fn cancel(&mut self) {
        if let Some(index) = self.drawn() {
            self.store.release(self.requests.swap_remove(index).sequence);
            self.report.cancelled += 1;
        }
    }

    pub fn cancel_all(&mut self) {
        while !self.requests.is_empty() {
            self.cancel();
        }
    }

    /// Spoils a row whose page is in `tier`; whether there is one.
    pub fn spoil(&mut self, tier: Tier) -> bool {
        let Some(Request { sequence, .. }) = self.requests.iter().find(|request| request.sequence.length() > 0) else {
            return false;
        };
        let row = Row { layer: 1, kind: Kind::Values, head: 1, token: 0 };
        let before = self.store.counts();
        let _ = self.store.row(sequence, row);
        let is_hit = self.store.counts().hits > before.hits;
        let there = is_hit == (tier == Tier::Gpu);
        if there {
            self.store.spoil(sequence, row);
        }
        there
    }
}

/// All rows of a token.
fn rows(token: usize) -> impl Iterator<Item = Row> {
    (0..SHAPE.layers).flat_map(move |layer| {
        Kind::ALL
            .into_iter()
            .flat_map(move |kind| (0..SHAPE.kv_heads).map(move |head| Row { layer, kind, head, token }))
    })
}

/// What a row of the token with this name holds.
fn expected(name: u64, row: Row) -> [f32; SHAPE.head_dim] {
    let mut numbers = Random(name << 8 | (row.layer as u64) << 4 | (row.kind as u64) << 2 | row.head as u64);
    std::array::from_fn(|_| (numbers.next() >> 40) as f32)
}
