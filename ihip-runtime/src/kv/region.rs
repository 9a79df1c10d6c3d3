//! Keys, or values, of one layer: a pool with its memory, its clock and its log of misses.
//!
//! The copy stream is a queue whose copies happen as late as they may: when somebody has to wait for them, or when
//! the step is over. Steps of the CPU happen where they are handed over.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// By the page's number: whether it is in the log.
    is_logged: Vec<AtomicBool>,
    log: Mutex<Vec<PageId>>,
    hits: AtomicU64,
    misses: AtomicU64,
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
            is_logged: Vec::new(),
            log: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
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

    pub(super) fn counts(&self) -> Counts {
        Counts { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed), ..self.moved }
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
        if self.is_logged.len() <= page.index() {
            self.is_logged.resize_with(page.index() + 1, AtomicBool::default);
        }
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

    pub(super) fn fill(&mut self, page: PageId) {
        self.pool.fill(page);
    }

    /// The slot of a page, where it is. One on the host is read in place and logged once.
    pub(super) fn page(&self, page: PageId) -> &[f32] {
        let Place { tier, slot } = self.pool.home(page).expect("a page of a request has a home");
        match tier {
            Tier::Gpu => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                self.clock.touch(slot);
                self.gpu.slot(slot)
            }
            Tier::Host => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                if !self.is_logged[page.index()].swap(true, Ordering::Relaxed) {
                    self.log.lock().unwrap_or_else(PoisonError::into_inner).push(page);
                }
                self.host.slot(slot)
            }
        }
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
                End::Moved => match transfer.to() {
                    Place { tier: Tier::Gpu, slot } => {
                        self.clock.place(slot, transfer.page());
                        self.moved.promotions += 1;
                    }
                    Place { tier: Tier::Host, .. } => self.moved.evictions += 1,
                },
            }
            self.transfers.pop_front();
        }
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
            let Self { pool, clock, .. } = self;
            let may_leave =
                |page, slot| pool.home(page) == Some(Place { tier: Tier::Gpu, slot }) && pool.is_movable(page);
            let victim = if pool.free(Tier::Host) > 0 { clock.victim(may_leave) } else { None };
            let Some(victim) = victim else { return false };
            self.begin(victim, Tier::Host);
            self.finish();
        }
        true
    }

    /// What is done between steps: logged pages come to the GPU while slots are free, then as many leave it as there
    /// have to be free slots.
    pub(super) fn settle(&mut self) {
        self.finish();
        let mut logged = std::mem::take(self.log.get_mut().unwrap_or_else(PoisonError::into_inner));
        // Threads log in any order.
        logged.sort_unstable();
        for page in logged {
            *self.is_logged[page.index()].get_mut() = false;
            self.begin(page, Tier::Gpu);
        }
        self.finish();
        if self.pool.slots(Tier::Host) > 0 {
            // What is free now is what can come back after the next step.
            self.make_room((self.pool.slots(Tier::Gpu) / SPARE).max(1));
        }
    }

    pub(super) fn release(&mut self, page: PageId) {
        let readers = self.readers();
        self.pool.release(page, readers);
    }
}
