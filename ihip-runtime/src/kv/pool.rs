//! Where the pages of one layer's keys, or of its values, are: the slots of both tiers and the moves between them.
//!
//! A page has one home. New pages begin on the GPU; once full they may move, and until a move has ended they are read
//! where they were. Everything here is bookkeeping: whoever owns the memory does the copies and the waiting.

use std::marker::PhantomData;

use super::page::PageId;
use super::rules::{Rules, Sound};
use super::slot::{Events, Slot};

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The device's own, fast and small.
    Gpu,
    /// The host's.
    Host,
}

/// A slot of one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The tier.
    pub tier: Tier,
    /// Number of the slot in it.
    pub slot: u32,
}

/// A slot as it was when somebody took note of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    place: Place,
    generation: u32,
}

/// A copy of a page between tiers that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    page: PageId,
    from: Held,
    to: Held,
    wait: Events,
    event: Events,
}

impl Transfer {
    /// The page.
    #[must_use]
    pub const fn page(&self) -> PageId {
        self.page
    }

    /// Where it is copied from.
    #[must_use]
    pub const fn from(&self) -> Place {
        self.from.place
    }

    /// Where it is copied to.
    #[must_use]
    pub const fn to(&self) -> Place {
        self.to.place
    }

    /// What the copy has to come after.
    #[must_use]
    pub const fn wait(&self) -> Events {
        self.wait
    }

    /// The copy's own event.
    #[must_use]
    pub const fn event(&self) -> Events {
        self.event
    }
}

/// What became of an attempt to end a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Nothing yet: the copy has not happened.
    Early,
    /// Nothing, for good: the page was released while it moved, and both slots with it.
    Stale,
    /// The page has its new home.
    Moved,
}

/// A page's home and what is going on with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Page {
    home: Place,
    /// Whether all its tokens are written.
    full: bool,
    /// Where it is being copied to, and the copy's event.
    moving: Option<(Place, Events)>,
}

/// The slots of one tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slots {
    slots: Vec<Slot>,
    /// Free ones; the last is taken first.
    free: Vec<u32>,
}

impl Slots {
    fn new(count: usize) -> Self {
        let count = u32::try_from(count).expect("positions are 32-bit integers");
        // Lower slots come first: memory that was never needed is never touched.
        Self { slots: vec![Slot::NEW; count as usize], free: (0..count).rev().collect() }
    }

    fn free(&mut self, slot: u32, users: Events) {
        self.slots[slot as usize].free(users);
        self.free.push(slot);
    }
}

/// Homes of the pages of one layer's keys, or of its values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pool<R = Sound> {
    gpu: Slots,
    host: Slots,
    /// By the page's number.
    pages: Vec<Option<Page>>,
    rules: PhantomData<R>,
}

impl<R: Rules> Pool<R> {
    /// A pool of so many slots in each tier, all free.
    #[must_use]
    pub fn new(gpu: usize, host: usize) -> Self {
        Self { gpu: Slots::new(gpu), host: Slots::new(host), pages: Vec::new(), rules: PhantomData }
    }

    fn tier(&self, tier: Tier) -> &Slots {
        match tier {
            Tier::Gpu => &self.gpu,
            Tier::Host => &self.host,
        }
    }

    fn tier_mut(&mut self, tier: Tier) -> &mut Slots {
        match tier {
            Tier::Gpu => &mut self.gpu,
            Tier::Host => &mut self.host,
        }
    }

    fn slot_mut(&mut self, place: Place) -> &mut Slot {
        &mut self.tier_mut(place.tier).slots[place.slot as usize]
    }

    /// A slot.
    #[must_use]
    pub fn slot(&self, place: Place) -> &Slot {
        &self.tier(place.tier).slots[place.slot as usize]
    }

    /// Slots of a tier.
    #[must_use]
    pub fn slots(&self, tier: Tier) -> usize {
        self.tier(tier).slots.len()
    }

    /// Slots of a tier that are free.
    #[must_use]
    pub fn free(&self, tier: Tier) -> usize {
        self.tier(tier).free.len()
    }

    fn page(&self, page: PageId) -> Option<&Page> {
        self.pages.get(page.index())?.as_ref()
    }

    fn page_mut(&mut self, page: PageId) -> &mut Page {
        self.pages[page.index()].as_mut().expect("the page has a home")
    }

    /// Where `page` is read; `None` where it has no home.
    #[must_use]
    pub fn home(&self, page: PageId) -> Option<Place> {
        self.page(page).map(|page| page.home)
    }

    /// Whether `page` may begin to move: it has a home, is full and stands still.
    #[must_use]
    pub fn is_movable(&self, page: PageId) -> bool {
        self.page(page).is_some_and(|page| (page.full || !R::MOVES_FULL_PAGES) && page.moving.is_none())
    }

    /// Gives a new page a home on the GPU, where `writer` writes its first tokens. Gives what the writer has to come
    /// after; `None` where no slot is free.
    ///
    /// # Panics
    /// Where the page has a home.
    pub fn put(&mut self, page: PageId, writer: Events) -> Option<Events> {
        assert!(self.page(page).is_none(), "a page has one home");
        let (place, wait) = self.claim(Tier::Gpu)?;
        let slot = self.slot_mut(place);
        slot.written_by(writer);
        slot.arrive();
        if self.pages.len() <= page.index() {
            self.pages.resize(page.index() + 1, None);
        }
        self.pages[page.index()] = Some(Page { home: place, full: false, moving: None });
        Some(wait)
    }

    fn claim(&mut self, tier: Tier) -> Option<(Place, Events)> {
        let slots = self.tier_mut(tier);
        let slot = slots.free.pop()?;
        let wait = slots.slots[slot as usize].claim();
        Some((Place { tier, slot }, if R::OVERWRITES_AFTER_READERS { wait } else { Events::NONE }))
    }

    /// Takes note of work that writes further tokens of `page`.
    ///
    /// # Panics
    /// Where it has no home, or was full.
    pub fn append(&mut self, page: PageId, writer: Events) {
        let Page { home, full, .. } = *self.page_mut(page);
        assert!(!full, "a full page is never written");
        self.slot_mut(home).written_by(writer);
    }

    /// Says that all tokens of `page` are written, or that work was handed over that does.
    ///
    /// # Panics
    /// Where it has no home.
    pub fn fill(&mut self, page: PageId) {
        self.page_mut(page).full = true;
    }

    /// Begins to move `page` to `tier` by a copy whose event is `copy`; `None` where no slot is free there. Its home stays
    /// where it is until [`Self::end`].
    ///
    /// # Panics
    /// Where the page is not movable, or is in this tier already.
    pub fn begin(&mut self, page: PageId, tier: Tier, copy: Events) -> Option<Transfer> {
        assert!(self.is_movable(page), "only a full page moves, one move at a time");
        let from = self.page_mut(page).home;
        assert_ne!(from.tier, tier, "a page moves between tiers");
        let (to, unread) = self.claim(tier)?;
        self.slot_mut(to).written_by(copy);
        let held = |place| Held { place, generation: self.slot(place).generation() };
        let (from, to) = (held(from), held(to));
        let whole = self.slot_mut(from.place).leave();
        self.page_mut(page).moving = Some((to.place, copy));
        let wait = if R::COPIES_AFTER_WRITER { unread.and(whole) } else { unread };
        Some(Transfer { page, from, to, wait, event: copy })
    }

    /// Ends a move once the streams are at `done`: the page is read at its new home from the next work on, and its old
    /// slot is given back. `readers` are the events of all work that may read the old one.
    ///
    /// # Panics
    /// Where the move has ended before.
    pub fn end(&mut self, transfer: &Transfer, done: Events, readers: Events) -> End {
        let Transfer { page, from, to, event, .. } = *transfer;
        if R::ENDS_AFTER_COPY && !event.happened_by(done) {
            return End::Early;
        }
        let is_stale = |held: Held| self.slot(held.place).generation() != held.generation;
        if R::COMPARES_GENERATIONS && (is_stale(from) || is_stale(to)) {
            return End::Stale;
        }
        self.slot_mut(to.place).arrive();
        let moved = self.page_mut(page);
        moved.home = to.place;
        moved.moving = None;
        self.tier_mut(from.place.tier).free(from.place.slot, readers);
        End::Moved
    }

    /// Takes `page` its home, and the slot that it was moving to; `readers` are the events of all work that may read it.
    ///
    /// # Panics
    /// Where it has no home.
    pub fn release(&mut self, page: PageId, readers: Events) {
        let Page { home, moving, .. } = self.pages[page.index()].take().expect("a page is released once");
        match moving {
            None => self.tier_mut(home.tier).free(home.slot, readers),
            // The copy reads one slot and writes the other, whoever has them when it comes to that.
            Some((target, copy)) => {
                self.tier_mut(home.tier).free(home.slot, readers.and(copy));
                self.tier_mut(target.tier).free(target.slot, copy);
            }
        }
    }
}

#[cfg(test)]
impl<R: Rules> Pool<R> {
    /// Forgets what no decision depends on any more once the streams are at `done`: events count from there, and
    /// generations from now, in the pool as in the `transfers` that it began.
    pub(super) fn rebase(&mut self, transfers: &mut std::collections::VecDeque<Transfer>, done: Events) {
        for transfer in transfers {
            for held in [&mut transfer.from, &mut transfer.to] {
                let slots = match held.place.tier {
                    Tier::Gpu => &self.gpu,
                    Tier::Host => &self.host,
                };
                // What is past is equally past, however long ago.
                let is_stale = held.generation != slots.slots[held.place.slot as usize].generation();
                held.generation = if is_stale { 1 << 31 } else { 0 };
            }
            // The copy has what it waits for.
            transfer.wait = Events::NONE;
            transfer.event = transfer.event.since(done);
        }
        for Slots { slots, free } in [&mut self.gpu, &mut self.host] {
            slots.iter_mut().for_each(|slot| slot.rebase(done));
            free.sort_unstable();
        }
        for (_, event) in self.pages.iter_mut().flatten().filter_map(|page| page.moving.as_mut()) {
            *event = event.since(done);
        }
    }
}
