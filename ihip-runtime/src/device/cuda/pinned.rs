//! Memory of the host for a cache, allocated by a thread of its own while a model loads.
//!
//! The driver commits and pins it while it allocates: that takes seconds for tens of GiB, however many threads ask, and
//! needs nothing but the bytes of each allocation, which are known before any weight is read.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Result;
use crate::device::HostAllocation;

/// What a thread allocates ahead of its use, in order, until an allocation fails. Dropped, it gives back what nobody took
/// and waits for the thread.
#[derive(Debug)]
pub(super) struct Ahead<T> {
    /// Bytes of each that is still to be taken.
    sizes: VecDeque<usize>,
    /// Each with what it took; nothing once no more is wanted.
    made: Option<Receiver<(Result<T>, Duration)>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Begins to `allocate` so many bytes each.
    ///
    /// # Errors
    /// Where the system has no thread for it.
    pub(super) fn start(sizes: Vec<usize>, allocate: impl Fn(usize) -> Result<T> + Send + 'static) -> io::Result<Self> {
        let (sender, made) = mpsc::channel();
        let to_take = sizes.clone().into();
        let thread = thread::Builder::new().name("host memory".to_owned()).spawn(move || {
            for bytes in sizes {
                let start = Instant::now();
                let allocation = allocate(bytes);
                let failed = allocation.is_err();
                // What is sent to nobody is dropped here.
                if sender.send((allocation, start.elapsed())).is_err() || failed {
                    break;
                }
            }
        })?;
        Ok(Self { sizes: to_take, made: Some(made), thread: Some(thread) })
    }
}

impl<T> Ahead<T> {
    /// Whether it has yet to be taken, and is of so many bytes each.
    pub(super) fn is_of(&self, sizes: &[usize]) -> bool {
        self.sizes == sizes
    }

    /// The next one once it is there, and what it took; nothing where that is not of so many bytes.
    fn take(&mut self, bytes: usize) -> Option<(Result<T>, Duration)> {
        if self.sizes.front() != Some(&bytes) {
            return None;
        }
        self.sizes.pop_front();
        self.made.as_ref()?.recv().ok()
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        // The thread sends to nobody from here on, and ends.
        self.made = None;
        if let Some(thread) = self.thread.take() {
            // Where it panicked, it has said so.
            let _ = thread.join();
        }
    }
}

/// Hands out what was allocated ahead, and allocates what was not.
pub(super) struct Pinned<'a, T> {
    ahead: Option<Ahead<T>>,
    allocate: &'a dyn Fn(usize) -> Result<T>,
    took: HostAllocation,
}

impl<'a, T> Pinned<'a, T> {
    pub(super) fn new(ahead: Option<Ahead<T>>, allocate: &'a dyn Fn(usize) -> Result<T>) -> Self {
        Self { ahead, allocate, took: HostAllocation::default() }
    }

    /// The next `bytes`.
    ///
    /// # Errors
    /// Why they were not to be had, then or now.
    pub(super) fn take(&mut self, bytes: usize) -> Result<T> {
        let start = Instant::now();
        let (allocation, took) = match self.ahead.as_mut().and_then(|ahead| ahead.take(bytes)) {
            Some(made) => made,
            None => ((self.allocate)(bytes), start.elapsed()),
        };
        self.took.seconds += took.as_secs_f64();
        self.took.waited += start.elapsed().as_secs_f64();
        allocation
    }

    /// What all that was taken took.
    pub(super) const fn took(&self) -> HostAllocation {
        self.took
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::Sender;

    use super::*;
    use crate::Error;

    /// Memory that can be counted.
    #[derive(Clone, Debug, Default)]
    struct Memory {
        asked: Arc<AtomicUsize>,
        held: Arc<AtomicUsize>,
        /// Which allocation fails, counted from 1.
        fails: Option<usize>,
    }

    /// Bytes of it, and which allocation they are.
    #[derive(Debug)]
    struct Bytes {
        number: usize,
        bytes: usize,
        held: Arc<AtomicUsize>,
    }

    impl Drop for Bytes {
        fn drop(&mut self) {
            self.held.fetch_sub(self.bytes, Ordering::SeqCst);
        }
    }

    impl Memory {
        fn allocate(&self, bytes: usize) -> Result<Bytes> {
            let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
            if self.fails == Some(number) {
                let (what, device) = ("a cache".to_owned(), "the host".to_owned());
                return Err(Error::OutOfMemory { what, device, needed: bytes as u64, available: 0 });
            }
            self.held.fetch_add(bytes, Ordering::SeqCst);
            Ok(Bytes { number, bytes, held: self.held.clone() })
        }

        fn ahead(&self, sizes: &[usize]) -> Ahead<Bytes> {
            let memory = self.clone();
            Ahead::start(sizes.to_vec(), move |bytes| memory.allocate(bytes)).expect("a thread")
        }

        /// Each allocation waits until it is let through.
        fn gated(&self, sizes: &[usize]) -> (Ahead<Bytes>, Sender<()>) {
            let (memory, (open, gate)) = (self.clone(), mpsc::channel());
            let allocate = move |bytes| {
                let _ = gate.recv();
                memory.allocate(bytes)
            };
            (Ahead::start(sizes.to_vec(), allocate).expect("a thread"), open)
        }

        fn counts(&self) -> [usize; 2] {
            [&self.asked, &self.held].map(|count| count.load(Ordering::SeqCst))
        }
    }

    /// Where all of it was allocated ahead.
    fn nothing_more(bytes: usize) -> Result<Bytes> {
        panic!("{bytes} bytes were not allocated ahead")
    }

    #[test]
    fn what_was_allocated_ahead_is_taken_in_order_and_anything_else_is_allocated_then() {
        let (early, late) = (Memory::default(), Memory::default());
        let allocate = |bytes| late.allocate(bytes);
        let mut pinned = Pinned::new(Some(early.ahead(&[30, 10, 30])), &allocate);
        let mut take = |bytes| {
            let taken = pinned.take(bytes).expect("memory");
            assert_eq!(taken.bytes, bytes);
            (taken.number, Arc::ptr_eq(&taken.held, &early.held))
        };
        // 20 bytes are not the next, and there is no fourth.
        assert_eq!([30, 20, 10, 30, 30].map(&mut take), [(1, true), (1, false), (2, true), (3, true), (2, false)]);
        assert_eq!([early.counts(), late.counts()], [[3, 0], [2, 0]]);

        let mut pinned = Pinned::new(None, &allocate);
        assert_eq!(pinned.take(5).expect("memory").number, 3, "nothing was allocated ahead");
        let HostAllocation { seconds, waited } = pinned.took();
        assert!(0.0 < seconds && seconds <= waited, "the request waited for all of {seconds} s: {waited} s");
    }

    #[test]
    fn a_request_waits_for_what_is_not_there_yet() {
        let (ahead, open) = Memory::default().gated(&[1, 2, 3]);
        assert!(ahead.is_of(&[1, 2, 3]) && !ahead.is_of(&[1, 2]) && !ahead.is_of(&[1, 3, 2]));
        let mut pinned = Pinned::new(Some(ahead), &nothing_more);
        let opening = thread::spawn(move || {
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(20));
                open.send(()).expect("the thread waits for it");
            }
        });
        let taken = [1, 2, 3].map(|bytes| pinned.take(bytes).expect("memory").number);
        opening.join().expect("it was let through");
        assert_eq!(taken, [1, 2, 3]);
    }

    #[test]
    fn whichever_fails_nothing_is_asked_for_after_it_and_all_comes_back() {
        let sizes = [5, 6, 7];
        for fails in 1..=sizes.len() {
            let memory = Memory { fails: Some(fails), ..Memory::default() };
            let mut pinned = Pinned::new(Some(memory.ahead(&sizes)), &nothing_more);
            let taken: Result<Vec<Bytes>> = sizes.into_iter().map(|bytes| pinned.take(bytes)).collect();
            let error = taken.expect_err("one of them fails");
            assert!(matches!(error, Error::OutOfMemory { needed, .. } if needed == sizes[fails - 1] as u64), "{error}");
            drop(pinned);
            assert_eq!(memory.counts(), [fails, 0], "allocation {fails} failed");
        }
    }

    #[test]
    fn what_nobody_takes_is_given_back_and_the_thread_ends() {
        for taken in 0..3 {
            let memory = Memory::default();
            let (mut ahead, open) = memory.gated(&[4; 100]);
            for _ in 0..taken {
                open.send(()).expect("the thread waits for it");
                let (allocation, _) = ahead.take(4).expect("the next one");
                allocation.expect("memory");
            }
            // The next ones are let through slowly, until nobody asks.
            let opening = thread::spawn(move || {
                while open.send(()).is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            drop(ahead);
            let [asked, held] = memory.counts();
            assert!(asked < 100 && held == 0, "{taken} were taken, {asked} asked for, {held} bytes are held");
            assert_eq!(Arc::strong_count(&memory.asked), 1, "the thread has ended");
            opening.join().expect("it ends");
        }
    }
}
