//! Keys, or values, of one layer: a pool with its memory, its clock and its log of misses.
//!
//! The copy stream is a queue whose copies happen as late as they may: when somebody has to wait for them, or when
//! the step is over. Steps of the CPU happen where they are handed over.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::budget::{Shape, Slots};
use super::clock::Clock;
use super::error::{Kind, KvError};
use super::memory::{Allocate, Memory};
use super::page::PageId;
use super::pool::{End, Place, Pool, Tier, Transfer};
use super::slot::{Events, Stream};

/// One slot in so many is kept free between steps.
const SPARE: usize = 8;

/// What happened in a region, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows read on the GPU.
    pub hits: u64,
    /// Rows read in place on the host.
    pub misses: u64,
    /// Pages brought to the GPU.
    pub promotions: u64,
    /// Pages taken from it.
    pub evictions: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.promotions += other.promotions;
        self.evictions += other.evictions;
    }
}

#[derive(Debug)]
pub(super) struct Region {
    pool: Pool,
    gpu: Memory,
    host: Memory,
    clock: Clock,
    issued: Events,
    done: Events,
    /// Copies in their order: first those that have happened, then the others.
    transfers: VecDeque<Transfer>,
    /// By the page's number: the slot that is its home, those of the host counted on from those of the GPU.
    table: Vec<u32>,
    /// By the page's number: whether it is in the log.
    is_logged: Vec<AtomicBool>,
    log: Mutex<Vec<PageId>>,
    /// By the page's number, where it is recorded: whether it was read.
    is_read: Option<Vec<AtomicBool>>,
    moved: Counts,
}

impl Region {
    pub(super) fn new(
        allocator: &Arc<dyn Allocate>,
        shape: &Shape,
        slots: Slots,
        what: (usize, Kind),
    ) -> Result<Self, KvError> {
        let width = shape.kv_heads * shape.page * shape.head_dim;
        Ok(Self {
            pool: Pool::new(slots.gpu, slots.host),
            gpu: Memory::new(allocator, Tier::Gpu, (slots.gpu, width), what)?,
            host: Memory::new(allocator, Tier::Host, (slots.host, width), what)?,
            clock: Clock::new(slots.gpu),
            issued: Events::NONE,
            done: Events::NONE,
            transfers: VecDeque::new(),
            table: Vec::new(),
            is_logged: Vec::new(),
            log: Mutex::default(),
            is_read: None,
            moved: Counts::default(),
        })
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn bytes(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Gpu => self.gpu.bytes(),
            Tier::Host => self.host.bytes(),
        }
    }

    /// Pages that moved; reads are counted by who reads.
    pub(super) fn moved(&self) -> Counts {
        self.moved
    }

    /// Whether pages may be on the host.
    fn is_tiered(&self) -> bool {
        self.pool.slots(Tier::Host) > 0
    }

    /// The number of a slot in the table.
    fn number(&self, place: Place) -> u32 {
        match place.tier {
            Tier::Gpu => place.slot,
            Tier::Host => self.pool.slots(Tier::Gpu) as u32 + place.slot,
        }
    }

    /// The event of a step that happens at once.
    fn step(&mut self) -> Events {
        let event = self.issued.next(Stream::Compute);
        self.done = self.done.and(event);
        event
    }

    /// The last step: it may have read whatever had a home.
    fn readers(&self) -> Events {
        Events::of(Stream::Compute, self.issued.in_stream(Stream::Compute))
    }

    /// Gives `page` a home; a slot is free.
    pub(super) fn put(&mut self, page: PageId) {
        let writer = self.step();
        let wait = self.pool.put(page, writer).expect("room was made");
        self.wait(wait);
        let home = self.pool.home(page).expect("it was put there");
        self.clock.place(home.slot, page);
        if self.table.len() <= page.index() {
            self.table.resize(page.index() + 1, 0);
            self.is_logged.resize_with(page.index() + 1, AtomicBool::default);
            if let Some(is_read) = &mut self.is_read {
                is_read.resize_with(page.index() + 1, AtomicBool::default);
            }
        }
        self.table[page.index()] = home.slot;
    }

    /// The slot of a page that is still written.
    pub(super) fn open(&mut self, page: PageId) -> &mut [f32] {
        let writer = self.step();
        self.pool.append(page, writer);
        self.page_mut(page)
    }

    /// The slot of a page, wherever it is.
    pub(super) fn page_mut(&mut self, page: PageId) -> &mut [f32] {
        let Place { tier, slot } = self.pool.home(page).expect("a page of a request has a home");
        match tier {
            Tier::Gpu => self.gpu.slot_mut(slot),
            Tier::Host => self.host.slot_mut(slot),
        }
    }

    /// The same, to look at: nothing notes it.
    pub(super) fn peek(&self, page: PageId) -> &[f32] {
        let Place { tier, slot } = self.pool.home(page).expect("a page of a request has a home");
        match tier {
            Tier::Gpu => self.gpu.slot(slot),
            Tier::Host => self.host.slot(slot),
        }
    }

    pub(super) fn fill(&mut self, page: PageId) {
        self.pool.fill(page);
    }

    /// The slot of a page, where it is, and whether that is on the GPU. One on the host is logged once.
    #[inline]
    pub(super) fn page(&self, page: PageId) -> (&[f32], bool) {
        let number = self.table[page.index()];
        if let Some(is_read) = &self.is_read {
            is_read[page.index()].store(true, Ordering::Relaxed);
        }
        // Nothing has to be remembered of what never leaves.
        if !self.is_tiered() {
            return (self.gpu.slot(number), true);
        }
        let Some(slot) = number.checked_sub(self.pool.slots(Tier::Gpu) as u32) else {
            self.clock.touch(number);
            return (self.gpu.slot(number), true);
        };
        let is_logged = &self.is_logged[page.index()];
        if !is_logged.load(Ordering::Relaxed) && !is_logged.swap(true, Ordering::Relaxed) {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).push(page);
        }
        (self.host.slot(slot), false)
    }

    /// From here on, which pages are read is remembered until it is asked for, or is not.
    pub(super) fn record(&mut self, record: bool) {
        self.is_read = record.then(|| self.table.iter().map(|_| AtomicBool::default()).collect());
    }

    /// Whether `page` was read since this was last asked, where it is recorded.
    pub(super) fn take_read(&self, page: PageId) -> bool {
        self.is_read.as_ref().is_some_and(|is_read| is_read[page.index()].swap(false, Ordering::Relaxed))
    }

    /// Begins to move a page to the other tier. Whether it does: it has to be full and to stand still, and a slot to be
    /// free.
    pub(super) fn begin(&mut self, page: PageId, tier: Tier) -> bool {
        let elsewhere = self.pool.home(page).is_some_and(|home| home.tier != tier);
        if !(elsewhere && self.pool.is_movable(page) && self.pool.free(tier) > 0) {
            return false;
        }
        let event = self.issued.next(Stream::Copy);
        let transfer = self.pool.begin(page, tier, event).expect("a slot is free");
        self.transfers.push_back(transfer);
        true
    }

    /// Lets copies happen up to `events`.
    fn wait(&mut self, events: Events) {
        while !events.happened_by(self.done) {
            let event = self.done.next(Stream::Copy);
            let copy = self.transfers.iter().find(|transfer| transfer.event() == event);
            let copy = *copy.expect("only what was handed over is waited for");
            assert!(copy.wait().happened_by(self.done), "a copy comes after what it waits for");
            let (from, to) = (copy.from().slot, copy.to().slot);
            match copy.to().tier {
                Tier::Gpu => self.gpu.slot_mut(to).copy_from_slice(self.host.slot(from)),
                Tier::Host => self.host.slot_mut(to).copy_from_slice(self.gpu.slot(from)),
            }
        }
    }

    /// Lets the next copy happen, if one is handed over.
    pub(super) fn copy_one(&mut self) {
        let next = self.done.in_stream(Stream::Copy) + 1;
        if next <= self.issued.in_stream(Stream::Copy) {
            self.wait(Events::of(Stream::Copy, next));
        }
    }

    /// Ends the moves whose copies have happened.
    pub(super) fn end(&mut self) {
        while let Some(transfer) = self.transfers.front().copied() {
            match self.pool.end(&transfer, self.done, self.readers()) {
                End::Early => break,
                End::Stale => {}
                End::Moved => {
                    self.table[transfer.page().index()] = self.number(transfer.to());
                    match transfer.to() {
                        Place { tier: Tier::Gpu, slot } => {
                            self.clock.place(slot, transfer.page());
                            self.moved.promotions += 1;
                        }
                        Place { tier: Tier::Host, .. } => self.moved.evictions += 1,
                    }
                }
            }
            self.transfers.pop_front();
        }
    }

    /// Pages on their way.
    pub(super) fn moving(&self) -> usize {
        self.transfers.len()
    }

    /// Lets everything that was handed over happen, and ends it.
    pub(super) fn finish(&mut self) {
        self.wait(self.issued);
        self.end();
    }

    /// Frees slots on the GPU until `pages` are, or no page may leave.
    pub(super) fn make_room(&mut self, pages: usize) -> bool {
        if self.pool.free(Tier::Gpu) < pages {
            self.finish();
        }
        while self.pool.free(Tier::Gpu) < pages {
            if !self.evict() {
                return false;
            }
            self.finish();
        }
        true
    }

    /// Begins to move the page that was not read for longest to the host; whether there is one, and room.
    fn evict(&mut self) -> bool {
        let Self { pool, clock, .. } = self;
        let may_leave = |page, slot| pool.home(page) == Some(Place { tier: Tier::Gpu, slot }) && pool.is_movable(page);
        let victim = if pool.free(Tier::Host) > 0 { clock.victim(may_leave) } else { None };
        victim.is_some_and(|victim| self.begin(victim, Tier::Host))
    }

    /// What is done between steps: moves that were begun after the step before end, logged pages begin to come to the
    /// GPU while slots are free, and as many begin to leave it as there have to be free slots.
    pub(super) fn settle(&mut self) {
        if !self.is_tiered() {
            return;
        }
        self.finish();
        let mut logged = std::mem::take(self.log.get_mut().unwrap_or_else(PoisonError::into_inner));
        // Threads log in any order.
        logged.sort_unstable();
        for page in logged {
            *self.is_logged[page.index()].get_mut() = false;
            self.begin(page, Tier::Gpu);
        }
        // What becomes free is what can come back after the next step.
        let spare = (self.pool.slots(Tier::Gpu) / SPARE).max(1);
        let leaving = spare.saturating_sub(self.pool.free(Tier::Gpu));
        for _ in 0..leaving {
            if !self.evict() {
                break;
            }
        }
    }

    pub(super) fn release(&mut self, page: PageId) {
        let readers = self.readers();
        self.pool.release(page, readers);
    }
}
