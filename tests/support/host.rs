//! Where generated kernels run in tests: the emulator, or a GPU where `IHIP_TEST_DEVICE=cuda` asks for one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ihip_dsl::emit::{Instructions, Kernel};
use ihip_runtime::device::cuda::{KernelArgument, KernelBuffer, KernelRunner};

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

    /// What the text of kernels may use here.
    fn instructions(&self) -> Instructions {
        Instructions::Portable
    }

    /// Compiles kernels side by side where that saves time; those of others are compiled when they are launched.
    fn prepare(&mut self, _kernels: &[Kernel]) {}

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
        Ok("cuda") => Box::new(OnGpu::new()),
        Ok(other) => panic!("IHIP_TEST_DEVICE is {other}, and tests know `emulator` and `cuda`"),
    }
}

/// A host that several layers share: what they launch runs in one order, and a kernel is compiled once.
#[derive(Clone)]
pub struct Shared(Rc<RefCell<Box<dyn Host>>>);

impl Shared {
    /// Whoever has a clone of it uses `host`.
    #[must_use]
    pub fn new(host: Box<dyn Host>) -> Self {
        Self(Rc::new(RefCell::new(host)))
    }
}

impl Host for Shared {
    fn allocate(&mut self, name: &str, bytes: usize) -> Handle {
        self.0.borrow_mut().allocate(name, bytes)
    }

    fn write(&mut self, to: Handle, offset: usize, bytes: &[u8]) {
        self.0.borrow_mut().write(to, offset, bytes);
    }

    fn read(&mut self, from: Handle, offset: usize, bytes: usize) -> Vec<u8> {
        self.0.borrow_mut().read(from, offset, bytes)
    }

    fn instructions(&self) -> Instructions {
        self.0.borrow().instructions()
    }

    fn prepare(&mut self, kernels: &[Kernel]) {
        self.0.borrow_mut().prepare(kernels);
    }

    fn launch(&mut self, kernel: &Kernel, grid: [u32; 3], arguments: &[HostValue]) {
        self.0.borrow_mut().launch(kernel, grid, arguments);
    }
}

/// The first GPU as a host.
pub struct OnGpu {
    runner: KernelRunner,
    buffers: Vec<KernelBuffer>,
}

impl OnGpu {
    /// # Panics
    /// Where there is no GPU, or no way to compile for it.
    #[must_use]
    pub fn new() -> Self {
        let runner = KernelRunner::new(0).unwrap_or_else(|error| panic!("IHIP_TEST_DEVICE is cuda, but {error}"));
        Self { runner, buffers: Vec::new() }
    }
}

impl Default for OnGpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for OnGpu {
    fn allocate(&mut self, name: &str, bytes: usize) -> Handle {
        let buffer = self.runner.allocate(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        // A kernel that reads what nobody has written finds NaN and huge positions rather than a convenient zero; a tool
        // that looks for such reads has to see that nobody wrote.
        if std::env::var_os("IHIP_TEST_UNWRITTEN").is_none() {
            buffer.write(0, &vec![0xff_u8; bytes]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        self.buffers.push(buffer);
        Handle(self.buffers.len() - 1)
    }

    fn write(&mut self, to: Handle, offset: usize, bytes: &[u8]) {
        self.buffers[to.0].write(offset, bytes).unwrap_or_else(|error| panic!("{error}"));
    }

    fn read(&mut self, from: Handle, offset: usize, bytes: usize) -> Vec<u8> {
        self.buffers[from.0].read(offset, bytes).unwrap_or_else(|error| panic!("{error}"))
    }

    fn instructions(&self) -> Instructions {
        self.runner.instructions()
    }

    fn prepare(&mut self, kernels: &[Kernel]) {
        self.runner.load(kernels).unwrap_or_else(|error| panic!("{error}"));
    }

    fn launch(&mut self, kernel: &Kernel, grid: [u32; 3], arguments: &[HostValue]) {
        let arguments: Vec<KernelArgument<'_>> = arguments
            .iter()
            .map(|argument| match *argument {
                HostValue::Buffer(handle, offset) => KernelArgument::Buffer(&self.buffers[handle.0], offset),
                HostValue::I32(value) => KernelArgument::I32(value),
                HostValue::F32(value) => KernelArgument::F32(value),
            })
            .collect();
        self.runner.launch(kernel, grid, &arguments).unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
    }
}

/// The emulator as a host.
pub struct Emulated {
    emulator: Emulator,
    allocate: fn(&str, usize) -> Memory,
    memories: Vec<Memory>,
    kernels: BTreeMap<String, Arc<Compiled>>,
}

impl Emulated {
    /// A host that leaves open what `emulator` leaves open.
    #[must_use]
    pub const fn new(emulator: Emulator) -> Self {
        Self { emulator, allocate: Memory::new, memories: Vec::new(), kernels: BTreeMap::new() }
    }

    /// The same with memory of any size, of which only what is touched is there.
    #[must_use]
    pub fn sparse(emulator: Emulator) -> Self {
        Self { allocate: Memory::sparse, ..Self::new(emulator) }
    }
}

impl Host for Emulated {
    fn allocate(&mut self, name: &str, bytes: usize) -> Handle {
        self.memories.push((self.allocate)(name, bytes));
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
