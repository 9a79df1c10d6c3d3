//! Which page leaves the GPU: the clock, which gives a page that was read since its hand came by a second chance.

use std::sync::atomic::{AtomicBool, Ordering};

use super::page::PageId;

/// The slots of one pool on the GPU, as the hand goes round them. No pass is ever made over all tokens.
#[derive(Debug)]
pub(super) struct Clock {
    slots: Vec<Mark>,
    hand: usize,
}

#[derive(Debug, Default)]
struct Mark {
    /// The page that came here last; it may have left.
    page: Option<PageId>,
    /// Whether it was read since the hand came by.
    read: AtomicBool,
}

impl Clock {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| Mark::default()).collect(), hand: 0 }
    }

    /// `page` comes to `slot`.
    pub(super) fn place(&mut self, slot: u32, page: PageId) {
        self.slots[slot as usize] = Mark { page: Some(page), read: AtomicBool::new(true) };
    }

    /// The page in `slot` is read.
    pub(super) fn touch(&self, slot: u32) {
        let read = &self.slots[slot as usize].read;
        // Most reads find it set: a load shares the line between cores where a store would not.
        if !read.load(Ordering::Relaxed) {
            read.store(true, Ordering::Relaxed);
        }
    }

    /// The next page to leave, of those that `may_leave` says may leave their slot; `None` where there is none.
    pub(super) fn victim(&mut self, may_leave: impl Fn(PageId, u32) -> bool) -> Option<PageId> {
        // The first round takes the second chances away, the second finds who had one.
        for _ in 0..2 * self.slots.len() {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let Mark { page, read } = &mut self.slots[slot];
            let Some(page) = page.filter(|page| may_leave(*page, slot as u32)) else { continue };
            if !std::mem::take(read.get_mut()) {
                return Some(page);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_read_stays_longer_than_one_that_is_not() {
        let mut clock = Clock::new(3);
        for slot in 0..3 {
            clock.place(slot, PageId(10 + slot));
        }
        // All are new: the hand goes round once before it takes the first.
        assert_eq!(clock.victim(|_, _| true), Some(PageId(10)));
        clock.touch(1);
        assert_eq!(clock.victim(|page, _| page != PageId(10)), Some(PageId(12)));
        assert_eq!(clock.victim(|page, _| page == PageId(11)), Some(PageId(11)));
        assert_eq!(clock.victim(|_, _| false), None);
    }
}
