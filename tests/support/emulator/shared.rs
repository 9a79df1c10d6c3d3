//! Shared memory of a block: its arrays, and the gaps around them.

use super::error::Failure;
use super::memory::{Memory, POISON};

/// Dynamic shared memory that the largest device allows a block.
pub(super) const DYNAMIC_LIMIT: usize = 227 * 1024;
/// Static shared memory that every device allows a block.
pub(super) const STATIC_LIMIT: usize = 48 * 1024;
/// Bytes behind each array that are checked after each block.
const GAP: usize = 64;
const BYTES: usize = STATIC_LIMIT + 64 * GAP + DYNAMIC_LIMIT;
/// What gaps hold: NaN in every float type, and not what [`POISON`] is, which a kernel may well write as −1.
const GAP_PATTERN: [u8; 2] = [0xfd, 0x7f];

/// Static arrays in the order in which they were first reached from below, the dynamic one up to the guard page.
pub(super) struct Shared {
    memory: Memory,
    /// Static arrays: the address that tells one from another, and where its bytes lie.
    arrays: Vec<(usize, std::ops::Range<usize>)>,
    dynamic: usize,
}

impl Shared {
    pub(super) fn new(dynamic: usize) -> Self {
        Self { memory: Memory::new("shared memory", BYTES), arrays: Vec::new(), dynamic }
    }

    /// Forgets the arrays and makes every byte one that nobody has written.
    pub(super) fn poison(&mut self) {
        let dynamic = self.dynamic_start();
        let end = self.arrays.last().map_or(0, |(_, range)| range.end);
        self.arrays.clear();
        self.fill(0..end, POISON);
        self.fill(dynamic..BYTES, POISON);
        self.close_gap(dynamic - GAP);
    }

    fn fill(&mut self, range: std::ops::Range<usize>, byte: u8) {
        assert!(range.end <= BYTES, "shared memory ends at {BYTES}");
        // SAFETY: inside the buffer by the assertion.
        unsafe {
            self.memory.address().add(range.start).write_bytes(byte, range.len());
        };
    }

    fn close_gap(&mut self, start: usize) {
        for at in (start..start + GAP).step_by(GAP_PATTERN.len()) {
            self.memory.write(at, &GAP_PATTERN);
        }
    }

    fn dynamic_start(&self) -> usize {
        BYTES - self.dynamic.next_multiple_of(16)
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
        self.fill(start..start + bytes, POISON);
        self.close_gap((start + bytes).next_multiple_of(2));
        Ok(self.memory.address().wrapping_add(start))
    }

    /// The dynamic array.
    pub(super) fn dynamic(&self) -> *mut u8 {
        self.memory.address().wrapping_add(self.dynamic_start())
    }

    /// Whether `bytes` from `address` on are shared memory.
    pub(super) fn holds(&self, address: usize, bytes: usize) -> bool {
        let start = self.memory.address() as usize;
        address >= start && address + bytes <= start + BYTES
    }

    /// What wrote into a gap, if anything did.
    pub(super) fn overrun(&self) -> Option<Failure> {
        let written = |start: usize| {
            // SAFETY: gaps lie inside the buffer, and no thread of the block runs any more.
            let gap = unsafe { std::slice::from_raw_parts(self.memory.address().add(start), GAP) };
            gap.iter().zip(GAP_PATTERN.iter().cycle()).position(|(byte, expected)| byte != expected)
        };
        for (_, range) in &self.arrays {
            if let Some(at) = written(range.end.next_multiple_of(2)) {
                return Some(Failure::SharedOverrun { bytes: range.len(), offset: (range.len() + at).cast_signed() });
            }
        }
        written(self.dynamic_start() - GAP)
            .map(|at| Failure::SharedOverrun { bytes: self.dynamic, offset: at.cast_signed() - GAP.cast_signed() })
    }
}
