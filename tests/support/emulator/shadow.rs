//! Who touched which shared bytes last: what two threads do without a barrier between them is found in every order.

use std::fmt;
use std::ops::Range;

/// Bytes that are kept apart: an access to one byte counts for its neighbour too, as banks are wider than that anyway.
const GRANULE: usize = 2;
const THREAD_BITS: u32 = 10;
const UPDATE: u64 = 1 << THREAD_BITS;

/// What a thread does to memory, as `Access` of `emulator.h` has it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read = 0,
    /// A store.
    Write = 1,
    /// An atomic.
    Update = 2,
}

impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Update => "updates",
        })
    }
}

/// A moment of a block and the thread that did something then; 0 is before every block.
#[derive(Clone, Copy, Default)]
struct Stamp(u64);

impl Stamp {
    const fn thread(self) -> usize {
        (self.0 & (UPDATE - 1)) as usize
    }

    const fn warp(self) -> usize {
        self.thread() / super::thread::LANES
    }

    const fn clock(self) -> u64 {
        self.0 >> (THREAD_BITS + 1)
    }

    const fn is_update(self) -> bool {
        self.0 & UPDATE != 0
    }
}

/// The last accesses to a granule. Of its readers three tell everything: the last, the last other lane of that one's
/// warp, and the last lane of another warp. Where a writer is ordered after these, it is ordered after all.
#[derive(Clone, Copy, Default)]
struct Granule {
    writer: Stamp,
    /// Where the last writer made an atomic: the last other thread that did.
    updater: Stamp,
    reader: Stamp,
    reader_of_warp: Stamp,
    reader_elsewhere: Stamp,
    /// The thread that started a copy here and has not waited for it.
    copier: Stamp,
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Nobody in this block wrote these bytes.
    Unwritten,
    /// This thread has done this to the bytes since the last barrier that both have reached.
    With(usize, Access),
    /// This thread's copy to these bytes has not been waited for.
    Copy(usize),
}

/// The accesses of one block at a time to all of its shared memory.
pub(super) struct Shadow {
    granules: Vec<Granule>,
    clock: u64,
    /// When the block began, all threads were at its barrier, and each warp's lanes were at a barrier of theirs.
    began: u64,
    block_since: u64,
    warp_since: Vec<u64>,
    /// When the lanes of each warp last exchanged something. That is no barrier; but whoever exchanged has read what it
    /// made that of, so that what a warp read before is taken as read.
    exchanged_since: Vec<u64>,
}

impl Shadow {
    pub(super) fn new(bytes: usize, warps: usize) -> Self {
        let granules = vec![Granule::default(); bytes.div_ceil(GRANULE)];
        let since = vec![0; warps];
        Self { granules, clock: 0, began: 0, block_since: 0, warp_since: since.clone(), exchanged_since: since }
    }

    /// Forgets everything: a block begins.
    pub(super) fn begin(&mut self) {
        self.sync_block();
        self.began = self.clock;
    }

    /// All threads of the block are at its barrier.
    pub(super) fn sync_block(&mut self) {
        self.clock += 1;
        self.block_since = self.clock;
        self.warp_since.fill(self.clock);
    }

    /// All lanes of a warp are at a barrier of theirs.
    pub(super) fn sync_warp(&mut self, warp: usize) {
        self.clock += 1;
        self.warp_since[warp] = self.clock;
    }

    /// All lanes of a warp have exchanged something.
    pub(super) fn exchange(&mut self, warp: usize) {
        self.clock += 1;
        self.exchanged_since[warp] = self.clock;
    }

    /// Thread `thread` does `access` to the bytes `range`.
    pub(super) fn touch(&mut self, range: Range<usize>, thread: usize, access: Access) -> Result<(), Conflict> {
        let now = self.stamp(thread, access);
        for index in range.start / GRANULE..range.end.div_ceil(GRANULE) {
            let granule = &self.granules[index];
            self.is_settled(granule)?;
            if access != Access::Write && granule.writer.clock() < self.began {
                return Err(Conflict::Unwritten);
            }
            self.is_ordered(granule, now, access)?;
            let granule = &mut self.granules[index];
            match access {
                Access::Read => granule.read(now),
                Access::Write => granule.writer = now,
                Access::Update => granule.update(now),
            }
        }
        Ok(())
    }

    /// Thread `thread` starts a copy to the bytes `range`: until it has waited, they are nobody's.
    pub(super) fn start_copy(&mut self, range: Range<usize>, thread: usize) -> Result<(), Conflict> {
        self.touch(range.clone(), thread, Access::Write)?;
        let now = self.stamp(thread, Access::Write);
        for granule in &mut self.granules[range.start / GRANULE..range.end.div_ceil(GRANULE)] {
            granule.copier = now;
        }
        Ok(())
    }

    /// Thread `thread` has waited for its copy to the bytes `range`: it has written them now.
    pub(super) fn end_copy(&mut self, range: Range<usize>, thread: usize) {
        let now = self.stamp(thread, Access::Write);
        for granule in &mut self.granules[range.start / GRANULE..range.end.div_ceil(GRANULE)] {
            granule.copier = Stamp::default();
            granule.writer = now;
        }
    }

    fn stamp(&self, thread: usize, access: Access) -> Stamp {
        let update = if access == Access::Update { UPDATE } else { 0 };
        Stamp(self.clock << (THREAD_BITS + 1) | update | thread as u64)
    }

    fn is_settled(&self, granule: &Granule) -> Result<(), Conflict> {
        if granule.copier.clock() >= self.began {
            return Err(Conflict::Copy(granule.copier.thread()));
        }
        Ok(())
    }

    fn is_ordered(&self, granule: &Granule, now: Stamp, access: Access) -> Result<(), Conflict> {
        for writer in [granule.writer, granule.updater] {
            let written = if writer.is_update() { Access::Update } else { Access::Write };
            if (access != Access::Update || written != Access::Update) && !self.is_before(writer, now) {
                return Err(Conflict::With(writer.thread(), written));
            }
        }
        if access == Access::Read {
            return Ok(());
        }
        for reader in [granule.reader, granule.reader_of_warp, granule.reader_elsewhere] {
            let is_read = reader.warp() == now.warp() && reader.clock() < self.exchanged_since[now.warp()];
            if !is_read && !self.is_before(reader, now) {
                return Err(Conflict::With(reader.thread(), Access::Read));
            }
        }
        Ok(())
    }

    /// Whether program order or a barrier lies between the two.
    fn is_before(&self, earlier: Stamp, now: Stamp) -> bool {
        earlier.clock() < self.block_since
            || earlier.thread() == now.thread()
            || earlier.warp() == now.warp() && earlier.clock() < self.warp_since[now.warp()]
    }
}

impl Granule {
    fn update(&mut self, now: Stamp) {
        if self.writer.is_update() && self.writer.thread() != now.thread() {
            self.updater = self.writer;
        }
        self.writer = now;
    }

    fn read(&mut self, now: Stamp) {
        let last = self.reader;
        if last.thread() != now.thread() {
            if last.warp() == now.warp() {
                self.reader_of_warp = last;
            } else {
                self.reader_of_warp = Stamp::default();
                self.reader_elsewhere = last;
            }
        }
        self.reader = now;
    }
}
