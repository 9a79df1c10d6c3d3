//! Runs kernels where there is no GPU: the very text that NVRTC gets, compiled by the host's C++ compiler.
//!
//! Threads of a block are fibres on one thread of the host. They run one after another; a collective (shuffle, ballot,
//! barrier, matrix load, `mma`) ends when all who belong to it have arrived. The compiler reports every access: outside
//! of the arrays and buffers, to bytes that nobody wrote, to shared bytes that another thread touches with no barrier
//! between, to those that a copy is still under way to. What a GPU would let pass or hang on is an [`EmulatorError`]
//! with kernel, declared stage and line, block and thread. Needs x86-64 or aarch64, and Linux.

mod collective;
mod compile;
mod copies;
mod error;
mod fault;
mod fibre;
mod memory;
mod mistake;
mod order;
mod shadow;
mod shared;
mod thread;

use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use collective::Collective;
pub use compile::{Compiled, Source};
pub use copies::CopyTime;
pub use error::{EmulatorError, Failure, Line};
use memory::Region;
pub use memory::{Memory, Place};
pub use order::Order;
pub use shadow::Access;
use thread::Failed;

/// What a kernel is given.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// The address of byte `.1` of a buffer.
    Buffer(&'a Memory, usize),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `float`.
    F32(f32),
}

impl Argument<'_> {
    const fn kind(&self) -> char {
        match self {
            Self::Buffer(..) => 'p',
            Self::I32(_) => 'i',
            Self::U32(_) => 'u',
            Self::F32(_) => 'f',
        }
    }

    /// The value in the first bytes of a word, as the kernel reads it through its address.
    fn word(&self) -> [u8; 8] {
        let mut word = [0; 8];
        match *self {
            Self::Buffer(memory, offset) => {
                word = (memory.address() as usize + offset).to_ne_bytes();
            }
            Self::I32(value) => word[..4].copy_from_slice(&value.to_ne_bytes()),
            Self::U32(value) => word[..4].copy_from_slice(&value.to_ne_bytes()),
            Self::F32(value) => word[..4].copy_from_slice(&value.to_ne_bytes()),
        }
        word
    }
}

/// How launches are run: everything here is left open by CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// Order of blocks.
    pub blocks: Order,
    /// Order of a block's threads between two collectives.
    pub threads: Order,
    /// When asynchronous copies are made.
    pub copies: CopyTime,
    /// Threads of the host that take blocks, each one at a time.
    pub workers: usize,
}

impl Default for Emulator {
    fn default() -> Self {
        Self { blocks: Order::default(), threads: Order::default(), copies: CopyTime::default(), workers: 1 }
    }
}

impl Emulator {
    /// Everything random that a device leaves open, the same for the same seed.
    #[must_use]
    pub const fn random(seed: u64) -> Self {
        Self { blocks: Order::Random(seed), threads: Order::Random(seed), copies: CopyTime::Random, workers: 1 }
    }

    /// Runs a kernel over `grid` blocks.
    ///
    /// # Errors
    /// Arguments that are not the kernel's, and the first failure of a thread.
    pub fn launch(&self, kernel: &Compiled, grid: [u32; 3], arguments: &[Argument<'_>]) -> Result<(), EmulatorError> {
        let given: String = arguments.iter().map(Argument::kind).collect();
        if given != kernel.signature {
            let (kernel, expected) = (kernel.name.clone(), kernel.signature.clone());
            return Err(EmulatorError::Arguments { kernel, expected, given });
        }
        let words: Vec<[u8; 8]> = arguments.iter().map(Argument::word).collect();
        let words: Vec<Aligned> = words.into_iter().map(Aligned).collect();
        let regions = arguments.iter().filter_map(|argument| match argument {
            Argument::Buffer(memory, _) => Some(memory.region()),
            _ => None,
        });
        self.run_blocks(kernel, grid, &words, &regions.collect::<Vec<_>>())
    }

    fn run_blocks(
        &self,
        kernel: &Compiled,
        grid: [u32; 3],
        words: &[Aligned],
        regions: &[Region],
    ) -> Result<(), EmulatorError> {
        let library = kernel.library().expect("the kernel's own code is loaded");
        let count: usize = grid.iter().map(|&extent| extent as usize).product();
        let numbers = self.blocks.all(count);
        let taken = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = |seed: u64| {
            fault::prepare();
            let addresses: Vec<*const c_void> = words.iter().map(|word| word.0.as_ptr().cast()).collect();
            let mut block = thread::Block::new(
                &thread::Launch {
                    enter: kernel.enter,
                    arguments: &addresses,
                    regions,
                    library,
                    threads: kernel.threads,
                    grid,
                    shared_bytes: kernel.shared_bytes as usize,
                    order: self.threads,
                    copies: self.copies,
                },
                seed,
            );
            while let Some(&number) = numbers.get(taken.fetch_add(1, Ordering::Relaxed)) {
                let [x, y, z] = position(number, grid);
                if let Err(Failed { thread, failure: found, caller }) = block.run([x, y, z]) {
                    taken.store(count, Ordering::Relaxed);
                    let line = Box::new(kernel.line(caller).unwrap_or_default());
                    let kernel = kernel.name.clone();
                    let error = EmulatorError::Failed { kernel, line, block: [x, y, z], thread, failure: found };
                    failure.lock().expect("nothing panics here").get_or_insert(error);
                    return;
                }
            }
        };
        if self.workers <= 1 {
            work(0);
        } else {
            std::thread::scope(|scope| {
                for worker in 0..self.workers as u64 {
                    scope.spawn(move || work(worker));
                }
            });
        }
        failure.into_inner().expect("nothing panics here").map_or(Ok(()), Err)
    }
}

/// A word with the alignment of the widest argument.
#[repr(align(8))]
struct Aligned([u8; 8]);

/// Block `number` of a grid, x fastest.
fn position(number: usize, grid: [u32; 3]) -> [u32; 3] {
    let [x, y] = [grid[0] as usize, grid[1] as usize];
    let index = [number % x, number / x % y, number / x / y];
    index.map(|index| u32::try_from(index).expect("inside the grid"))
}
