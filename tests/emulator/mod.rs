//! The emulator itself: each primitive of the prelude on all lanes, and each mistake it is there to find.

mod conversions;
mod copies;
mod failures;
mod matrices;
mod prelude;
mod threads;

use ihip_tests::support::emulator::{Argument, Compiled, Emulator, EmulatorError, Failure, Source};

const PRELUDE: &str = include_str!("../../ihip-dsl/src/emit/prelude.cu");

/// One kernel named `name`, run as `emulator` says over `grid` blocks of `threads` threads.
struct Trial<'a> {
    emulator: Emulator,
    name: &'a str,
    body: &'a str,
    threads: u32,
    shared_bytes: u32,
    grid: [u32; 3],
}

impl<'a> Trial<'a> {
    /// One block of one warp.
    fn warp(name: &'a str, body: &'a str) -> Self {
        Self { emulator: Emulator::default(), name, body, threads: 32, shared_bytes: 0, grid: [1, 1, 1] }
    }

    fn run(&self, arguments: &[Argument<'_>]) -> Result<(), EmulatorError> {
        let source = Source {
            name: self.name,
            text: &format!("{PRELUDE}\n{}", self.body),
            threads: self.threads,
            shared_bytes: self.shared_bytes,
        };
        let compiled = Compiled::new(&source)?;
        self.emulator.launch(&compiled, self.grid, arguments)
    }

    /// The failure, which must name the kernel, with the block and thread that it names.
    fn failure(&self, arguments: &[Argument<'_>]) -> (Failure, [u32; 3], usize) {
        match self.run(arguments) {
            Err(EmulatorError::Failed { kernel, block, thread, failure }) => {
                assert_eq!(kernel, self.name);
                (failure, block, thread)
            }
            other => panic!("a failed thread was expected, not {other:?}"),
        }
    }
}
