//! Stacks, and the switch from one to another: how the threads of a block take turns on one thread of the host.
//!
//! Hand-written because `ucontext` makes a system call a switch, and a warp's shuffle costs 32 switches.

use std::sync::Mutex;

use super::thread::Thread;

/// Bytes of a stack, its guard page and its thread's record included; a power of two, as `emulator.h` says.
const STACK_BYTES: usize = 1 << 16;
/// Bytes of a record, `record_bytes` of `emulator.h`.
const RECORD_BYTES: usize = 256;
/// Places that a record may be shifted to, `shifts` of `emulator.h`.
const SHIFTS: usize = 8;
/// Stacks that are mapped in one piece.
const PIECE: usize = 32;

const _: () = assert!(size_of::<Thread>() <= RECORD_BYTES);

/// Stacks for the threads of a block. Made once and used again, since each costs a system call.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    mapping: *mut u8,
    first: *mut u8,
}

// SAFETY: a piece owns its mapping, and nothing in it depends on the thread of the host that made it.
unsafe impl Send for Piece {}

static UNUSED: Mutex<Vec<Stacks>> = Mutex::new(Vec::new());

impl Stacks {
    /// Stacks for `threads` threads, used ones where there are any.
    pub(super) fn take(threads: usize) -> Self {
        let unused = UNUSED.lock().expect("no one panics with the stacks in hand").pop();
        let mut stacks = unused.unwrap_or_default();
        while stacks.pieces.len() * PIECE < threads {
            stacks.pieces.push(Piece::map());
        }
        stacks
    }

    /// Gives the stacks back for the next launch.
    pub(super) fn give_back(self) {
        UNUSED.lock().expect("no one panics with the stacks in hand").push(self);
    }

    /// Where thread `index` keeps its record; its stack grows downwards from there.
    pub(super) fn record(&self, index: usize) -> *mut Thread {
        let first = self.pieces[index / PIECE].first;
        let top = (first as usize) + (index % PIECE + 1) * STACK_BYTES;
        let shift = RECORD_BYTES * (1 + top / STACK_BYTES % SHIFTS);
        first.wrapping_add(top - shift - first as usize).cast()
    }
}

impl Piece {
    fn map() -> Self {
        let bytes = (PIECE + 1) * STACK_BYTES;
        // SAFETY: an anonymous mapping at an address of the system's choice touches no memory that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED, "no memory for {bytes} bytes of stacks");
        let mapping = mapping.cast::<u8>();
        let first = mapping.wrapping_add(mapping.align_offset(STACK_BYTES));
        for stack in 0..PIECE {
            // SAFETY: the lowest page of each stack lies in the mapping above, and nothing is stored in it.
            let refused = unsafe {
                libc::mprotect(first.add(stack * STACK_BYTES).cast(), super::memory::page_bytes(), libc::PROT_NONE)
            };
            assert_eq!(refused, 0, "no guard page below a stack");
        }
        Self { mapping, first }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the mapping is this piece's own, and no thread's record outlives its block.
        unsafe { libc::munmap(self.mapping.cast(), (PIECE + 1) * STACK_BYTES) };
    }
}

/// Lays out a stack such that the first switch to it calls `run(record)`.
///
/// # Safety
/// `record` comes from [`Stacks::record`] and no fibre is alive on its stack.
pub(super) unsafe fn prepare(record: *mut Thread, run: unsafe extern "C" fn(*mut Thread) -> !) -> *mut u8 {
    let top = record.cast::<usize>();
    // SAFETY: the words below the record belong to its stack, which is far larger than what is written here.
    unsafe {
        let stack = top.sub(SAVED_WORDS);
        stack.write_bytes(0, SAVED_WORDS);
        stack.add(SAVED_RECORD).write(record as usize);
        stack.add(SAVED_RUN).write(run as usize);
        stack.add(SAVED_RETURN).write(enter as *const () as usize);
        stack.cast()
    }
}

#[cfg(target_arch = "x86_64")]
mod machine {
    // r15, r14, r13, r12, rbx, rbp, return address; one word more leaves the stack aligned to 16 bytes in `enter`.
    pub(super) const SAVED_WORDS: usize = 8;
    pub(super) const SAVED_RUN: usize = 3;
    pub(super) const SAVED_RECORD: usize = 4;
    pub(super) const SAVED_RETURN: usize = 6;

    /// Saves the caller's registers on its stack, stores where at `save`, and goes on where `stack` was saved.
    ///
    /// # Safety
    /// `stack` was saved by `switch` or laid out by `prepare`, and is resumed at most once.
    #[unsafe(naked)]
    pub(in super::super) unsafe extern "C" fn switch(save: *mut *mut u8, stack: *mut u8) {
        core::arch::naked_asm!(
            "push rbp",
            "push rbx",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "mov [rdi], rsp",
            "mov rsp, rsi",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbx",
            "pop rbp",
            "ret",
        )
    }

    #[unsafe(naked)]
    pub(super) unsafe extern "C" fn enter() {
        core::arch::naked_asm!("and rsp, -16", "mov rdi, rbx", "call r12", "ud2")
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    // x19 to x28, x29, x30, d8 to d15.
    pub(super) const SAVED_WORDS: usize = 20;
    pub(super) const SAVED_RECORD: usize = 0;
    pub(super) const SAVED_RUN: usize = 1;
    pub(super) const SAVED_RETURN: usize = 11;

    /// Saves the caller's registers on its stack, stores where at `save`, and goes on where `stack` was saved.
    ///
    /// # Safety
    /// `stack` was saved by `switch` or laid out by `prepare`, and is resumed at most once.
    #[unsafe(naked)]
    pub(in super::super) unsafe extern "C" fn switch(save: *mut *mut u8, stack: *mut u8) {
        core::arch::naked_asm!(
            "sub sp, sp, #160",
            "stp x19, x20, [sp]",
            "stp x21, x22, [sp, #16]",
            "stp x23, x24, [sp, #32]",
            "stp x25, x26, [sp, #48]",
            "stp x27, x28, [sp, #64]",
            "stp x29, x30, [sp, #80]",
            "stp d8, d9, [sp, #96]",
            "stp d10, d11, [sp, #112]",
            "stp d12, d13, [sp, #128]",
            "stp d14, d15, [sp, #144]",
            "mov x9, sp",
            "str x9, [x0]",
            "mov sp, x1",
            "ldp x19, x20, [sp]",
            "ldp x21, x22, [sp, #16]",
            "ldp x23, x24, [sp, #32]",
            "ldp x25, x26, [sp, #48]",
            "ldp x27, x28, [sp, #64]",
            "ldp x29, x30, [sp, #80]",
            "ldp d8, d9, [sp, #96]",
            "ldp d10, d11, [sp, #112]",
            "ldp d12, d13, [sp, #128]",
            "ldp d14, d15, [sp, #144]",
            "add sp, sp, #160",
            "ret",
        )
    }

    #[unsafe(naked)]
    pub(super) unsafe extern "C" fn enter() {
        core::arch::naked_asm!("mov x0, x19", "blr x20", "brk #1")
    }
}

pub(super) use machine::switch;
use machine::{SAVED_RECORD, SAVED_RETURN, SAVED_RUN, SAVED_WORDS, enter};

/// Whether `address` lies in the guard page below the stack that `record` is on.
pub(super) fn is_guard(record: usize, address: usize) -> bool {
    let lowest = record & !(STACK_BYTES - 1);
    (lowest..lowest + super::memory::page_bytes()).contains(&address)
}
