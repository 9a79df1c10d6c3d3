//! How much memory a call takes at most, counted by the allocator of the tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts what each thread has taken.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back, those of other threads that it gave back taken off.
    static TAKEN: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends gives back what it has after its counters are gone.
    let _ = TAKEN.try_with(|taken| {
        taken.set(taken.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(taken.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counters take no memory from the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both pieces are there while one is copied to the other.
        count(bytes.cast_signed());
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

/// What `call` returns, and how many bytes more than before it the calling thread had at most.
pub fn peak<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = TAKEN.get();
    PEAK.set(before);
    let result = call();
    (result, (PEAK.get() - before).cast_unsigned())
}
