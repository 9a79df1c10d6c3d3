//! Pages by their names: which are in use, and by how many requests.

use std::marker::PhantomData;

use super::rules::{Rules, Sound};

/// A page of the key-value cache: the same tokens in every layer, of keys and of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub(super) u32);

impl PageId {
    /// Its number, for arrays that have an entry a page.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names of pages, and how many requests have each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owners<R = Sound> {
    /// Of each page; 0 where the name is not in use.
    counts: Vec<u32>,
    unused: Vec<PageId>,
    rules: PhantomData<R>,
}

impl<R> Default for Owners<R> {
    fn default() -> Self {
        Self { counts: Vec::new(), unused: Vec::new(), rules: PhantomData }
    }
}

impl<R: Rules> Owners<R> {
    /// A page that nobody has, now with one owner.
    pub fn name(&mut self) -> PageId {
        let page = self.unused.pop().unwrap_or_else(|| {
            self.counts.push(0);
            PageId(u32::try_from(self.counts.len() - 1).expect("positions are 32-bit integers"))
        });
        self.counts[page.index()] = 1;
        page
    }

    /// One more request has `page`.
    ///
    /// # Panics
    /// Where nobody has it.
    pub fn share(&mut self, page: PageId) {
        assert!(self.counts[page.index()] > 0, "a page is shared by who has it");
        self.counts[page.index()] += 1;
    }

    /// One request less has `page`. Whether it was the last, so that the page has to be released in every pool.
    ///
    /// # Panics
    /// Where nobody has it.
    pub fn give_up(&mut self, page: PageId) -> bool {
        let count = &mut self.counts[page.index()];
        assert!(*count > 0, "a page is given up by who has it");
        *count = if R::COUNTS_OWNERS { *count - 1 } else { 0 };
        let last = *count == 0;
        if last {
            self.unused.push(page);
        }
        last
    }

    /// Requests that have `page`.
    #[must_use]
    pub fn of(&self, page: PageId) -> u32 {
        self.counts[page.index()]
    }

    /// Pages that somebody has.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.counts.len() - self.unused.len()
    }
}

#[cfg(test)]
impl<R> Owners<R> {
    /// Forgets in which order names were given up.
    pub(super) fn rebase(&mut self) {
        self.unused.sort_unstable();
    }
}
