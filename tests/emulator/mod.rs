//! The emulator itself: each primitive of the prelude on all lanes, and each mistake it is there to find.
//!
//! What a GPU must do as well runs there where `IHIP_TEST_DEVICE=cuda` asks for it: [`Trial::results`].

mod accesses;
mod conversions;
mod copies;
mod failures;
mod matrices;
mod measure;
mod prelude;
mod primitives;
mod threads;
mod wide;

use std::env;

use bytemuck::Pod;
use ihip_dsl::emit::{self, ArgumentKind, Element, Family, Kernel};
use ihip_tests::support::emulator::{Argument, Compiled, Emulator, EmulatorError, Failure, Source};
use ihip_tests::support::host::{Emulated, Host, HostValue, host};

const PRELUDE: &str = include_str!("../../ihip-dsl/src/emit/prelude.cu");

/// One kernel named `name`, run over `grid` blocks of `threads` threads.
struct Trial<'a> {
    /// How the emulator runs it.
    emulator: Emulator,
    name: &'a str,
    body: &'a str,
    threads: u32,
    shared_bytes: u32,
    grid: [u32; 3],
}

/// What a kernel is given, as bytes.
#[derive(Clone, Debug)]
enum Given {
    Buffer(Vec<u8>),
    I32(i32),
    F32(f32),
}

impl Given {
    fn values<T: Pod>(values: &[T]) -> Self {
        Self::Buffer(bytemuck::cast_slice(values).to_vec())
    }

    /// Room for `count` results, which start as what nobody wrote.
    fn room<T: Pod>(count: usize) -> Self {
        Self::Buffer(vec![0xff; count * size_of::<T>()])
    }
}

/// The buffers that a kernel was given, after it has run.
struct Results(Vec<Vec<u8>>);

impl Results {
    fn of<T: Pod>(&self, buffer: usize) -> Vec<T> {
        bytemuck::pod_collect_to_vec(&self.0[buffer])
    }
}

impl<'a> Trial<'a> {
    /// One block of one warp.
    fn warp(name: &'a str, body: &'a str) -> Self {
        Self { emulator: Emulator::default(), name, body, threads: 32, shared_bytes: 0, grid: [1, 1, 1] }
    }

    /// Laid out as generated texts are: the first line of the body is line 1 of "`name`, declared".
    fn text(&self) -> String {
        format!("#line 1 \"prelude.cu\"\n{PRELUDE}\n#line 1 \"{}, declared\"\n{}", self.name, self.body.trim_start())
    }

    /// Runs it on the device that the tests are asked to run on.
    fn results(&self, given: &[Given]) -> Results {
        let mut host: Box<dyn Host> =
            if env::var_os("IHIP_TEST_DEVICE").is_some() { host() } else { Box::new(Emulated::new(self.emulator)) };
        let mut buffers = Vec::new();
        let mut arguments = Vec::new();
        let mut values = Vec::new();
        for given in given {
            let (kind, value) = match given {
                Given::Buffer(bytes) => {
                    let buffer = host.allocate("a test's buffer", bytes.len());
                    host.write(buffer, 0, bytes);
                    buffers.push((buffer, bytes.len()));
                    (ArgumentKind::Output(Element::U32), HostValue::Buffer(buffer, 0))
                }
                Given::I32(value) => (ArgumentKind::I32, HostValue::I32(*value)),
                Given::F32(value) => (ArgumentKind::F32, HostValue::F32(*value)),
            };
            arguments.push(emit::Argument { name: "given", kind });
            values.push(value);
        }
        let kernel = Kernel {
            name: self.name.to_owned(),
            family: Family::Model,
            text: self.text(),
            arguments,
            threads: self.threads,
            shared_bytes: self.shared_bytes,
        };
        host.launch(&kernel, self.grid, &values);
        Results(buffers.into_iter().map(|(buffer, bytes)| host.read(buffer, 0, bytes)).collect())
    }

    /// Runs it in the emulator.
    fn emulate(&self, arguments: &[Argument<'_>]) -> Result<(), EmulatorError> {
        let source =
            Source { name: self.name, text: &self.text(), threads: self.threads, shared_bytes: self.shared_bytes };
        let compiled = Compiled::new(&source)?;
        self.emulator.launch(&compiled, self.grid, arguments)
    }

    /// The failure in the emulator, which must name the kernel, with the block and thread that it names.
    fn failure(&self, arguments: &[Argument<'_>]) -> (Failure, [u32; 3], usize) {
        let (failure, block, thread, _) = self.failure_at(arguments);
        (failure, block, thread)
    }

    /// The same with the line of the body.
    fn failure_at(&self, arguments: &[Argument<'_>]) -> (Failure, [u32; 3], usize, u32) {
        match self.emulate(arguments) {
            Err(EmulatorError::Failed { kernel, line, block, thread, failure }) => {
                assert_eq!((kernel.as_str(), line.declared), (self.name, format!("{}, declared", self.name)));
                (failure, block, thread, line.number)
            }
            other => panic!("a failed thread was expected, not {other:?}"),
        }
    }
}
