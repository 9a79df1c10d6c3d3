//! A block's threads: which of them runs, and where the others wait.

use std::cell::Cell;
use std::ffi::c_void;

use super::collective::{self, Collective, Operation};
use super::copies::{Copies, CopyTime, Transfer};
use super::error::Failure;
use super::fibre::{self, Stacks};
use super::memory::Region;
use super::order::{Order, Random};
use super::shadow::Access;
use super::shared::Shared;

/// Lanes of a warp.
pub(super) const LANES: usize = 32;

/// What a kernel's text sees of its thread, laid out as `Thread` of `emulator.h`, and what the emulator keeps beside it.
#[repr(C)]
pub(super) struct Thread {
    calls: *const collective::Calls,
    thread: [u32; 3],
    block: [u32; 3],
    threads: [u32; 3],
    grid: [u32; 3],
    /// Where it is taken up again.
    stack: *mut u8,
    /// The block it belongs to.
    pub(super) owner: *mut Block,
    /// Its number in the block.
    pub(super) index: usize,
    /// What it waits in, or waited in last; results of a shuffle or ballot are left here.
    pub(super) operation: Operation,
    /// Where in the kernel's code that is.
    caller: usize,
}

/// How a kernel is entered, by addresses of its arguments.
pub(super) type Enter = unsafe extern "C" fn(*const *const c_void);

/// What all blocks of a launch have in common.
pub(super) struct Launch<'a> {
    pub(super) enter: Enter,
    pub(super) arguments: &'a [*const c_void],
    /// The buffers among the arguments: what a kernel may touch.
    pub(super) regions: &'a [Region],
    /// Where the kernel's library begins, whose constants it may read.
    pub(super) library: usize,
    pub(super) threads: u32,
    pub(super) grid: [u32; 3],
    pub(super) shared_bytes: usize,
    pub(super) order: Order,
    pub(super) copies: CopyTime,
}

#[derive(Clone, Copy)]
struct Warp {
    /// Lanes that can go on.
    ready: u32,
    /// Lanes that wait in the collective that the warp is in.
    waiting: u32,
    /// Lanes that have left the kernel.
    left: u32,
}

impl Warp {
    const READY: Self = Self { ready: u32::MAX, waiting: 0, left: 0 };
}

/// A signal that a thread's access raised.
#[derive(Clone, Copy)]
pub(super) struct Fault {
    pub(super) address: usize,
    /// The instruction.
    pub(super) code: usize,
}

/// A thread that failed, what it did, and behind which instruction of the kernel.
pub(super) struct Failed {
    pub(super) thread: usize,
    pub(super) failure: Failure,
    pub(super) caller: usize,
}

/// One block at a time, run on one thread of the host.
pub(super) struct Block {
    enter: Enter,
    arguments: *const *const c_void,
    order: Order,
    random: Random,
    /// Where `run` is taken up again once no thread can go on.
    host: *mut u8,
    /// Records of the threads, each on its own stack.
    threads: Vec<*mut Thread>,
    /// The thread that runs.
    current: *mut Thread,
    warps: Vec<Warp>,
    /// Warps with a lane that can go on.
    ready_warps: u32,
    at_barrier: usize,
    pub(super) copies: Vec<Copies>,
    copy_time: CopyTime,
    pub(super) shared: Shared,
    regions: *const [Region],
    library: usize,
    failure: Option<(Failure, usize)>,
    fault: Option<Fault>,
    stacks: Option<Stacks>,
}

thread_local! {
    /// The block that this thread of the host runs, for the handler of signals.
    static RUNNING: Cell<*mut Block> = const { Cell::new(std::ptr::null_mut()) };
}

/// Ends the running block because of a signal; does not return where a block runs.
///
/// # Safety
/// Only from a handler of a synchronous signal, on the thread that raised it.
pub(super) unsafe fn end_by_fault(fault: Fault) {
    let block = RUNNING.get();
    if block.is_null() {
        return;
    }
    // SAFETY: the block is alive while it runs. What the fault interrupted is never taken up again, nor the handler.
    unsafe {
        (*block).fault = Some(fault);
        let mut interrupted = std::ptr::null_mut();
        fibre::switch(&raw mut interrupted, (*block).host);
    }
}

impl Block {
    /// The blocks of `launch` will run here one after another.
    pub(super) fn new(launch: &Launch<'_>, seed: u64) -> Box<Self> {
        let count = launch.threads as usize;
        let stacks = Stacks::take(count);
        let mut block = Box::new(Self {
            enter: launch.enter,
            arguments: launch.arguments.as_ptr(),
            order: launch.order,
            random: Random::new(launch.order.seed() ^ seed),
            host: std::ptr::null_mut(),
            threads: (0..count).map(|index| stacks.record(index)).collect(),
            current: std::ptr::null_mut(),
            warps: vec![Warp::READY; count / LANES],
            ready_warps: 0,
            at_barrier: 0,
            copies: (0..count).map(|_| Copies::default()).collect(),
            copy_time: launch.copies,
            shared: Shared::new(launch.shared_bytes, count / LANES),
            regions: launch.regions,
            library: launch.library,
            failure: None,
            fault: None,
            stacks: Some(stacks),
        });
        let owner: *mut Self = &raw mut *block;
        for (index, &record) in block.threads.iter().enumerate() {
            let thread = Thread {
                calls: &raw const collective::CALLS,
                thread: [u32::try_from(index).expect("at most 1024 threads"), 0, 0],
                block: [0; 3],
                threads: [launch.threads, 1, 1],
                grid: launch.grid,
                stack: std::ptr::null_mut(),
                owner,
                index,
                operation: Operation::SyncBlock,
                caller: 0,
            };
            // SAFETY: the record's place on its stack is reserved for it, and no one else has these stacks.
            unsafe { record.write(thread) };
        }
        block
    }

    /// Runs one block to its end or to its first failure.
    pub(super) fn run(&mut self, index: [u32; 3]) -> Result<(), Failed> {
        self.release_all();
        self.shared.begin();
        for (&thread, copies) in self.threads.iter().zip(&mut self.copies) {
            *copies = Copies::default();
            // SAFETY: `new` has written the record, and no fibre is alive between two blocks.
            unsafe {
                (*thread).block = index;
                (*thread).stack = fibre::prepare(thread, run_thread);
            }
        }
        let first = self.threads[self.order.first(self.threads.len(), &mut self.random)];
        let block: *mut Self = self;
        RUNNING.set(block);
        // SAFETY: the first thread's stack has just been laid out; control returns here when the last thread leaves or
        // one fails. Everything the threads do to the block meanwhile goes through `block`.
        unsafe {
            (*block).current = first;
            fibre::switch(&raw mut (*block).host, (*first).stack);
        }
        RUNNING.set(std::ptr::null_mut());
        // SAFETY: `current` is one of the records.
        let thread = unsafe { (*self.current).index };
        if let Some(fault) = self.fault.take() {
            let failure = Failure::of_fault(fault, self.current as usize);
            return Err(Failed { thread, failure, caller: fault.code + 1 });
        }
        match self.failure.take() {
            Some((failure, caller)) => Err(Failed { thread, failure, caller }),
            None => Ok(()),
        }
    }

    /// Finds out whether thread `index` may do `access` to `bytes` bytes from `address` on.
    pub(super) fn access(&mut self, index: usize, address: usize, bytes: usize, access: Access) -> Result<(), Failure> {
        if self.shared.holds(address) {
            return self.shared.touch(index, address, bytes, access);
        }
        // SAFETY: the launch, which has the regions, outlives its blocks.
        let regions = unsafe { &*self.regions };
        match regions.iter().find(|region| region.holds(address, bytes)) {
            Some(region) if region.touch(address, bytes, access) => Ok(()),
            Some(_) => Err(Failure::unwritten(address)),
            None if access == Access::Read && super::compile::library_of(address) == Some(self.library) => Ok(()),
            None => Err(Failure::outside(address)),
        }
    }

    /// The thread that goes on now, in the chosen order; none where all have left.
    fn next(&mut self) -> Option<*mut Thread> {
        // SAFETY: `current` is one of the records.
        let from = unsafe { (*self.current).index };
        let here = self.ready_warps & 1 << (from / LANES);
        // Staying in a warp until it waits for others keeps its stacks in the cache; random order leaves it at times.
        let warp = if here != 0 && !(self.order.is_random() && self.random.one_in(8)) {
            from / LANES
        } else {
            self.order.pick(self.ready_warps, from / LANES, &mut self.random)?
        };
        let lane = self.order.pick(self.warps[warp].ready, from % LANES, &mut self.random)?;
        Some(self.threads[warp * LANES + lane])
    }

    /// Starts a copy of thread `index`.
    ///
    /// # Safety
    /// As for [`Transfer::make`].
    pub(super) unsafe fn start_copy(&mut self, index: usize, transfer: Transfer) {
        // SAFETY: the caller's promise.
        unsafe { self.copies[index].start(transfer, self.copy_time, &mut self.random) };
    }

    /// The record of a lane of the warp of `index`.
    pub(super) fn lane(&self, index: usize, lane: usize) -> *mut Thread {
        self.threads[index / LANES * LANES + lane]
    }

    /// Every thread goes on: at a block's start, and when all have reached the barrier.
    fn release_all(&mut self) {
        self.at_barrier = 0;
        self.warps.fill(Warp::READY);
        self.ready_warps = u32::MAX >> (LANES - self.warps.len());
    }

    /// A thread that waits at the block's barrier.
    fn first_at_barrier(&self) -> Option<usize> {
        if self.at_barrier == 0 {
            return None;
        }
        let waiting = |warp: usize| self.warps[warp].waiting.trailing_zeros() as usize + warp * LANES;
        // SAFETY: the records of a block's threads live as long as it.
        let in_barrier =
            |&index: &usize| unsafe { (*self.threads[index]).operation.collective() == Collective::SyncBlock };
        (0..self.warps.len()).filter(|&warp| self.warps[warp].waiting != 0).map(waiting).find(in_barrier)
    }

    fn block_lane(&mut self, index: usize) {
        let warp = &mut self.warps[index / LANES];
        warp.ready &= !(1 << (index % LANES));
        if warp.ready == 0 {
            self.ready_warps &= !(1 << (index / LANES));
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(stacks) = self.stacks.take() {
            stacks.give_back();
        }
    }
}

/// The life of a thread.
unsafe extern "C" fn run_thread(thread: *mut Thread) -> ! {
    // SAFETY: the block outlives its threads; the arguments have been compared with the kernel's signature.
    unsafe {
        let owner = (*thread).owner;
        ((*owner).enter)((*owner).arguments);
        leave(thread)
    }
}

unsafe fn leave(thread: *mut Thread) -> ! {
    // SAFETY: as in `run_thread`; no reference to the block lives across the switch.
    unsafe {
        let block = &mut *(*thread).owner;
        let index = (*thread).index;
        block.block_lane(index);
        let warp = &mut block.warps[index / LANES];
        warp.left |= 1 << (index % LANES);
        let waits = if warp.waiting != 0 {
            Some(index / LANES * LANES + warp.waiting.trailing_zeros() as usize)
        } else {
            block.first_at_barrier()
        };
        if let Some(waits) = waits {
            let waiting = block.threads[waits];
            let collective = (*waiting).operation.collective();
            fail(thread, (*waiting).caller, Failure::Left { waits, collective, left: index });
        }
        give_way(thread);
        unreachable!("a thread that left is not taken up again")
    }
}

/// Lets others run until `thread` is ready again.
unsafe fn give_way(thread: *mut Thread) {
    // SAFETY: the thread that runs calls this; `next` gives a thread whose stack was saved or laid out.
    unsafe {
        let block = (*thread).owner;
        let next = (*block).next();
        let stack = match next {
            Some(next) if next == thread => return,
            Some(next) => {
                (*block).current = next;
                (*next).stack
            }
            None => (*block).host,
        };
        fibre::switch(&raw mut (*thread).stack, stack);
    }
}

/// Ends the block: `thread` has done what no kernel may, in the call that returns to `caller`.
pub(super) unsafe fn fail(thread: *mut Thread, caller: usize, failure: Failure) -> ! {
    // SAFETY: the thread that runs calls this; the host's stack was saved in `Block::run`.
    unsafe {
        let block = (*thread).owner;
        (*block).failure = Some((failure, caller));
        fibre::switch(&raw mut (*thread).stack, (*block).host);
    }
    unreachable!("a thread that failed is not taken up again")
}

/// Takes `thread` into a collective of its warp or block, and returns when all who belong to it have arrived.
pub(super) unsafe fn arrive(thread: *mut Thread, operation: Operation, caller: usize) {
    // SAFETY: the thread that runs calls this; no reference to the block lives across the switch.
    unsafe {
        let block = &mut *(*thread).owner;
        let index = (*thread).index;
        let (number, lane) = (index / LANES, index % LANES);
        let collective = operation.collective();
        (*thread).operation = operation;
        (*thread).caller = caller;
        let warp = &mut block.warps[number];
        let left = if collective == Collective::SyncBlock {
            block.warps.iter().position(|warp| warp.left != 0)
        } else {
            (warp.left != 0).then_some(number)
        };
        if let Some(left) = left {
            let left = left * LANES + block.warps[left].left.trailing_zeros() as usize;
            fail(thread, caller, Failure::Left { waits: index, collective, left });
        }
        let warp = &mut block.warps[number];
        if warp.waiting != 0 {
            let other = number * LANES + warp.waiting.trailing_zeros() as usize;
            let waits_in = (*block.threads[other]).operation.collective();
            if waits_in != collective {
                let (in_first, in_second) = (waits_in, collective);
                fail(thread, caller, Failure::Divergent { first: other, in_first, second: index, in_second });
            }
        }
        warp.waiting |= 1 << lane;
        let complete = if collective == Collective::SyncBlock {
            block.at_barrier += 1;
            block.at_barrier == block.threads.len()
        } else {
            warp.waiting == u32::MAX
        };
        if !complete {
            block.block_lane(index);
            give_way(thread);
            return;
        }
        if collective == Collective::SyncBlock {
            block.release_all();
            block.shared.sync_block();
        } else {
            match collective {
                Collective::SyncWarp => block.shared.sync_warp(number),
                _ => block.shared.exchange(number),
            }
            *warp = Warp::READY;
            block.ready_warps |= 1 << number;
            collective::complete(block, thread);
        }
        // Whoever arrives last would always be the first to go on.
        if block.order.is_random() {
            give_way(thread);
        }
    }
}
