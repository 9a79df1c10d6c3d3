//! Asynchronous copies of one thread.

use std::collections::VecDeque;

use super::order::Random;

/// When an asynchronous copy reads and writes: any moment between its start and the wait for it is right on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyTime {
    /// At the wait: a missing wait leaves the bytes unwritten.
    #[default]
    Late,
    /// At once: a copy into bytes that others still read destroys them.
    Early,
    /// Either, copy by copy.
    Random,
}

/// One copy of 16 bytes that has been started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) shared: *mut u8,
    /// What is copied; zeros where there is nothing.
    pub(super) global: Option<*const u8>,
    /// Whether the bytes are there already.
    made: bool,
}

impl Transfer {
    pub(super) const fn new(shared: *mut u8, global: Option<*const u8>) -> Self {
        Self { shared, global, made: false }
    }

    /// Copies unless it has been done.
    ///
    /// # Safety
    /// Both addresses are 16-byte aligned and the kernel may touch them.
    pub(super) unsafe fn make(&mut self) {
        if self.made {
            return;
        }
        self.made = true;
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = self.global.map_or(0, |global| global.cast::<u128>().read());
            self.shared.cast::<u128>().write(bytes);
        }
    }
}

/// Copies under way: closed groups, oldest first, and the one that is open.
#[derive(Debug, Default)]
pub(super) struct Copies {
    closed: VecDeque<Vec<Transfer>>,
    open: Vec<Transfer>,
}

impl Copies {
    /// Starts `transfer`.
    ///
    /// # Safety
    /// As for [`Transfer::make`].
    pub(super) unsafe fn start(&mut self, mut transfer: Transfer, time: CopyTime, random: &mut Random) {
        let at_once = match time {
            CopyTime::Late => false,
            CopyTime::Early => true,
            CopyTime::Random => random.one_in(2),
        };
        if at_once {
            // SAFETY: the caller's promise.
            unsafe { transfer.make() };
        }
        self.open.push(transfer);
    }

    /// Closes the open group.
    pub(super) fn commit(&mut self) {
        self.closed.push_back(std::mem::take(&mut self.open));
    }

    /// Groups that end when at most `pending` may stay under way.
    pub(super) fn end(&mut self, pending: usize) -> Vec<Transfer> {
        let count = self.closed.len().saturating_sub(pending);
        self.closed.drain(..count).flatten().collect()
    }
}
