//! Shared memory of a block: its arrays, and what the block's threads did to them.

use std::ops::Range;

use super::error::Failure;
use super::memory::{Memory, POISON, Place, page_bytes};
use super::shadow::{Access, Conflict, Shadow};

/// Dynamic shared memory that the largest device allows a block.
pub(super) const DYNAMIC_LIMIT: usize = 227 * 1024;
/// Static shared memory that every device allows a block.
pub(super) const STATIC_LIMIT: usize = 48 * 1024;
/// Bytes between two arrays, which belong to none.
const GAP: usize = 64;
const BYTES: usize = STATIC_LIMIT + 64 * GAP + DYNAMIC_LIMIT;

/// Static arrays in the order in which they were first reached from below, the dynamic one up to the guard page.
pub(super) struct Shared {
    memory: Memory,
    start: usize,
    /// Static arrays: the address that tells one from another, and where its bytes lie.
    arrays: Vec<(usize, Range<usize>)>,
    dynamic: Range<usize>,
    shadow: Shadow,
}

impl Shared {
    pub(super) fn new(dynamic: usize, warps: usize) -> Self {
        let memory = Memory::new("shared memory", BYTES);
        let start = memory.address() as usize;
        let first = BYTES - dynamic.next_multiple_of(16);
        let shadow = Shadow::new(BYTES, warps);
        Self { memory, start, arrays: Vec::new(), dynamic: first..first + dynamic, shadow }
    }

    /// Forgets the arrays and makes every byte one that nobody has written: a block begins.
    pub(super) fn begin(&mut self) {
        let end = self.arrays.last().map_or(0, |(_, range)| range.end);
        self.arrays.clear();
        self.fill(0..end);
        self.fill(self.dynamic.clone());
        self.shadow.begin();
    }

    fn fill(&mut self, range: Range<usize>) {
        assert!(range.end <= BYTES, "shared memory ends at {BYTES}");
        // SAFETY: inside the buffer by the assertion.
        unsafe {
            self.memory.address().add(range.start).write_bytes(POISON, range.len());
        };
    }

    /// The static array known by `key`; `Err` where the block's arrays outgrow what devices have.
    pub(super) fn array(&mut self, key: usize, bytes: usize) -> Result<*mut u8, Failure> {
        let known = self.arrays.iter().find(|(other, _)| *other == key);
        if let Some((_, range)) = known {
            return Ok(self.memory.address().wrapping_add(range.start));
        }
        let sum = bytes + self.arrays.iter().map(|(_, range)| range.len()).sum::<usize>();
        if sum > STATIC_LIMIT {
            return Err(Failure::StaticShared { bytes: sum, limit: STATIC_LIMIT });
        }
        let start = self.arrays.last().map_or(0, |(_, range)| range.end.next_multiple_of(16) + GAP);
        self.arrays.push((key, start..start + bytes));
        self.fill(start..start + bytes);
        Ok(self.memory.address().wrapping_add(start))
    }

    /// The dynamic array.
    pub(super) fn dynamic(&self) -> *mut u8 {
        self.memory.address().wrapping_add(self.dynamic.start)
    }

    /// Whether `address` is one of shared memory, of whichever array or none, or right behind the dynamic one.
    pub(super) fn holds(&self, address: usize) -> bool {
        (self.start..self.start + BYTES + page_bytes()).contains(&address)
    }

    /// All threads of the block are at its barrier.
    pub(super) fn sync_block(&mut self) {
        self.shadow.sync_block();
    }

    /// All lanes of a warp are at a barrier of theirs.
    pub(super) fn sync_warp(&mut self, warp: usize) {
        self.shadow.sync_warp(warp);
    }

    /// All lanes of a warp have exchanged something.
    pub(super) fn exchange(&mut self, warp: usize) {
        self.shadow.exchange(warp);
    }

    /// Thread `thread` does `access` to `bytes` bytes from `address` on.
    pub(super) fn touch(&mut self, thread: usize, address: usize, bytes: usize, access: Access) -> Result<(), Failure> {
        let range = self.range(address, bytes)?;
        let touched = self.shadow.touch(range, thread, access);
        touched.map_err(|conflict| self.failure(address, access, conflict))
    }

    /// Thread `thread` starts a copy to the 16 bytes from `address` on.
    pub(super) fn start_copy(&mut self, thread: usize, address: usize) -> Result<(), Failure> {
        let range = self.range(address, 16)?;
        let started = self.shadow.start_copy(range, thread);
        started.map_err(|conflict| self.failure(address, Access::Write, conflict))
    }

    /// Thread `thread` has waited for its copy to the 16 bytes from `address` on.
    pub(super) fn end_copy(&mut self, thread: usize, address: usize) {
        self.shadow.end_copy(address - self.start..address - self.start + 16, thread);
    }

    /// The bytes as an interval, where they lie in an array.
    fn range(&self, address: usize, bytes: usize) -> Result<Range<usize>, Failure> {
        let range = address - self.start..address - self.start + bytes;
        let array = self.nearest(range.start);
        if range.start >= array.start && range.end <= array.end {
            return Ok(range);
        }
        let place = place(&array, range.start);
        Err(Failure::OutOfBounds { place })
    }

    /// The array that `offset` lies in, or the nearest one.
    fn nearest(&self, offset: usize) -> Range<usize> {
        if offset >= self.dynamic.start {
            return self.dynamic.clone();
        }
        let distance = |array: &Range<usize>| match offset {
            offset if offset < array.start => array.start - offset,
            offset if offset >= array.end => offset - array.end + 1,
            _ => 0,
        };
        let arrays = self.arrays.iter().map(|(_, array)| array).chain([&self.dynamic]);
        arrays.min_by_key(|array| distance(array)).expect("the dynamic one is always there").clone()
    }

    #[cold]
    fn failure(&self, address: usize, access: Access, conflict: Conflict) -> Failure {
        let offset = address - self.start;
        let place = place(&self.nearest(offset), offset);
        match conflict {
            Conflict::Unwritten => Failure::Unwritten { place },
            Conflict::With(other, did) => Failure::Race { place, access, other, did },
            Conflict::Copy(copier) => Failure::UnfinishedCopy { place, access, copier },
        }
    }
}

fn place(array: &Range<usize>, offset: usize) -> Place {
    let buffer = "a shared array".to_owned();
    Place { buffer, bytes: array.len(), offset: offset.cast_signed() - array.start.cast_signed() }
}
