//! Where generated kernels run in tests: the emulator, or a GPU where `IHIP_TEST_DEVICE=cuda` asks for one.

use std::collections::BTreeMap;
use std::sync::Arc;

use ihip_dsl::emit::Kernel;

use super::emulator::{Argument, Compiled, Emulator, Memory, Source};

/// Memory of a host, by the number that [`Host::allocate`] gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub usize);

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostValue {
    /// The address of byte `.1` of a buffer.
    Buffer(Handle, usize),
    /// `int`.
    I32(i32),
    /// `float`.
    F32(f32),
}

/// Something that runs kernels. Whatever fails, fails the test that asked for it.
pub trait Host {
    /// Memory that nobody has written.
    fn allocate(&mut self, name: &str, bytes: usize) -> Handle;

    /// Writes `bytes` from byte `offset` on.
    fn write(&mut self, to: Handle, offset: usize, bytes: &[u8]);

    /// The `bytes` bytes from `offset` on.
    fn read(&mut self, from: Handle, offset: usize, bytes: usize) -> Vec<u8>;

    /// Compiles a kernel unless it did so before, and runs it over `grid` blocks.
    fn launch(&mut self, kernel: &Kernel, grid: [u32; 3], arguments: &[HostValue]);
}

/// The host that `IHIP_TEST_DEVICE` names: `emulator` (the default) or `cuda`.
///
/// # Panics
/// Where it names another, or one that is not there.
#[must_use]
pub fn host() -> Box<dyn Host> {
    match std::env::var("IHIP_TEST_DEVICE").as_deref() {
        Err(_) | Ok("emulator") => Box::new(Emulated::new(Emulator::default())),
        Ok(other) => panic!("IHIP_TEST_DEVICE is {other}, and tests know `emulator` and `cuda`"),
    }
}

/// The emulator as a host.
pub struct Emulated {
    emulator: Emulator,
    memories: Vec<Memory>,
    kernels: BTreeMap<String, Arc<Compiled>>,
}

impl Emulated {
    /// A host that leaves open what `emulator` leaves open.
    #[must_use]
    pub const fn new(emulator: Emulator) -> Self {
        Self { emulator, memories: Vec::new(), kernels: BTreeMap::new() }
    }
}

impl Host for Emulated {
    fn allocate(&mut self, name: &str, bytes: usize) -> Handle {
        self.memories.push(Memory::new(name, bytes));
        Handle(self.memories.len() - 1)
    }

    fn write(&mut self, to: Handle, offset: usize, bytes: &[u8]) {
        self.memories[to.0].write(offset, bytes);
    }

    fn read(&mut self, from: Handle, offset: usize, bytes: usize) -> Vec<u8> {
        self.memories[from.0].read::<u8>()[offset..offset + bytes].to_vec()
    }

    fn launch(&mut self, kernel: &Kernel, grid: [u32; 3], arguments: &[HostValue]) {
        let compiled = self.kernels.entry(kernel.text.clone()).or_insert_with(|| {
            let (threads, shared_bytes) = (kernel.threads, kernel.shared_bytes);
            let source = Source { name: &kernel.name, text: &kernel.text, threads, shared_bytes };
            Compiled::new(&source).unwrap_or_else(|error| panic!("{error}"))
        });
        let arguments: Vec<Argument<'_>> = arguments
            .iter()
            .map(|argument| match *argument {
                HostValue::Buffer(handle, offset) => Argument::Buffer(&self.memories[handle.0], offset),
                HostValue::I32(value) => Argument::I32(value),
                HostValue::F32(value) => Argument::F32(value),
            })
            .collect();
        self.emulator.launch(compiled, grid, &arguments).unwrap_or_else(|error| panic!("{error}"));
    }
}
