//! One slot: room for one page in one tier, and who may touch it when.
//!
//! ```text
//!           claim               arrive
//!   Free ──────────▶ Loading ──────────▶ Resident
//!    ▲                  │                   │ leave
//!    │       free       │                   ▼
//!    └──────────────────┴─────────────── Evicting
//! ```
//!
//! Nothing here waits. Work is handed to two streams that run on their own, and a slot says which events the next work
//! that touches it has to come after.

/// A queue of work that runs in the order in which it was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Steps of the model: they write new tokens and read pages where these are.
    Compute,
    /// Copies between tiers.
    Copy,
}

/// A point in each stream: the work up to it, counted from 1. 0 is before any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Events {
    compute: u64,
    copy: u64,
}

impl Events {
    /// Before any work.
    pub const NONE: Self = Self { compute: 0, copy: 0 };

    /// Work `number` of one stream.
    #[must_use]
    pub const fn of(stream: Stream, number: u64) -> Self {
        match stream {
            Stream::Compute => Self { compute: number, copy: 0 },
            Stream::Copy => Self { compute: 0, copy: number },
        }
    }

    /// The point in `stream`.
    #[must_use]
    pub const fn in_stream(self, stream: Stream) -> u64 {
        match stream {
            Stream::Compute => self.compute,
            Stream::Copy => self.copy,
        }
    }

    /// What comes after both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { compute: self.compute.max(other.compute), copy: self.copy.max(other.copy) }
    }

    /// Whether all of it has happened once the streams are at `done`.
    #[must_use]
    pub const fn happened_by(self, done: Self) -> bool {
        self.compute <= done.compute && self.copy <= done.copy
    }

    /// Counts one more work of `stream` and gives its event.
    pub const fn next(&mut self, stream: Stream) -> Self {
        let number = match stream {
            Stream::Compute => &mut self.compute,
            Stream::Copy => &mut self.copy,
        };
        *number += 1;
        Self::of(stream, *number)
    }
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing: it may be claimed.
    Free,
    /// A page is on its way in; nobody reads it.
    Loading,
    /// It is a page's home, read in place.
    Resident,
    /// Its page is on its way out; it is still the home, and still read in place.
    Evicting,
}

/// Room for one page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    state: State,
    /// How often it was freed: whoever remembers a slot remembers this with it.
    generation: u32,
    /// With a page in it, the writer's event: who reads the page from another stream comes after it. While it is free,
    /// the events of its last readers and writers: who overwrites it comes after them.
    after: Events,
}

impl Slot {
    /// A slot that nobody has touched.
    pub const NEW: Self = Self { state: State::Free, generation: 0, after: Events::NONE };

    /// What it is doing.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// How often it was freed.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Begins to fill it. Gives the events of its last readers and writers, which the work that fills it has to wait
    /// for.
    ///
    /// # Panics
    /// Where it is not free.
    pub(super) fn claim(&mut self) -> Events {
        assert_eq!(self.state, State::Free, "only a free slot is claimed");
        self.state = State::Loading;
        self.after
    }

    /// Takes note of work that writes it.
    ///
    /// # Panics
    /// Where it is free.
    pub(super) fn written_by(&mut self, writer: Events) {
        assert_ne!(self.state, State::Free, "a slot is claimed before it is written");
        self.after = self.after.and(writer);
    }

    /// Makes it the home of the page that was loaded.
    ///
    /// # Panics
    /// Where nothing was being loaded.
    pub(super) fn arrive(&mut self) {
        assert_eq!(self.state, State::Loading, "only what was loading arrives");
        self.state = State::Resident;
    }

    /// Begins to copy its page elsewhere. Gives the writer's event, which the copy has to wait for.
    ///
    /// # Panics
    /// Where it is no page's home, or is being left already.
    pub(super) fn leave(&mut self) -> Events {
        assert_eq!(self.state, State::Resident, "only a resident page leaves");
        self.state = State::Evicting;
        self.after
    }

    /// Gives it back; `users` are the events of all work that may still touch it.
    ///
    /// # Panics
    /// Where it is free already.
    pub(super) fn free(&mut self, users: Events) {
        assert_ne!(self.state, State::Free, "a slot is freed once");
        self.state = State::Free;
        self.generation = self.generation.wrapping_add(1);
        self.after = self.after.and(users);
    }
}

#[cfg(test)]
impl Events {
    /// The same point as it looks once the streams are at `done` and that counts as nothing.
    pub(super) fn since(self, done: Self) -> Self {
        let compute = self.compute.saturating_sub(done.compute);
        Self { compute, copy: self.copy.saturating_sub(done.copy) }
    }
}

#[cfg(test)]
impl Slot {
    /// Forgets what no decision depends on any more once the streams are at `done`, and counts generations from here.
    pub(super) fn rebase(&mut self, done: Events) {
        self.after = self.after.since(done);
        self.generation = 0;
    }
}
