//! Single kernels over plain buffers: what tests compare with the reference, and what measurements time.

use std::sync::Arc;

use bytemuck::Pod;
use ihip_dsl::emit::{Instructions, Kernel};

use super::launch::{Loader, Operand};
use super::ledger::Stream;
use super::memory::{Buffer, failed};
use super::{architecture, driver};
use crate::Result;
use crate::jit::Compiler;

/// Runs kernels one by one on a GPU.
#[derive(Debug)]
pub struct KernelRunner {
    stream: Stream,
    loader: Loader,
}

/// A buffer of a [`KernelRunner`].
#[derive(Clone, Debug)]
pub struct KernelBuffer(Arc<Buffer>);

/// What a kernel is handed for one argument.
#[derive(Clone, Copy, Debug)]
pub enum KernelArgument<'a> {
    /// The address of a byte of a buffer.
    Buffer(&'a KernelBuffer, usize),
    /// A 32-bit integer.
    I32(i32),
    /// A float.
    F32(f32),
}

impl KernelRunner {
    /// GPU `ordinal`, counted as the driver counts.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchDevice`] with the reason, or [`crate::Error::Jit`] where NVRTC is missing.
    pub fn new(ordinal: usize) -> Result<Self> {
        let context = driver::open(ordinal)?;
        let stream = Stream::new(context.new_stream().map_err(failed("cuStreamCreate"))?);
        let compiler = Compiler::from_environment(architecture(&context)?)?.for_gpu();
        Ok(Self { stream, loader: Loader::new(context, compiler) })
    }

    /// What the text of kernels may use here.
    #[must_use]
    pub const fn instructions(&self) -> Instructions {
        self.loader.instructions()
    }

    /// Allocates `bytes` bytes that nobody has written.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(&self, bytes: usize) -> Result<KernelBuffer> {
        Buffer::new(&self.stream, "a kernel's buffer", bytes, false).map(KernelBuffer)
    }

    /// Compiles `kernels` side by side, so that their first launches do not.
    ///
    /// # Errors
    /// A kernel that does not compile or load.
    pub fn load(&mut self, kernels: &[Kernel]) -> Result<()> {
        self.loader.load(kernels.to_vec()).map(|_| ())
    }

    /// Launches `grid` blocks of `kernel`; [`KernelBuffer::read`] waits for them.
    ///
    /// # Errors
    /// A kernel that does not compile, arguments that are not its own, or a failed launch.
    pub fn launch(&mut self, kernel: &Kernel, grid: [u32; 3], arguments: &[KernelArgument<'_>]) -> Result<()> {
        let operands: Vec<Operand> = arguments
            .iter()
            .map(|argument| match *argument {
                KernelArgument::Buffer(buffer, offset) => Operand::Address(buffer.0.address() + offset as u64),
                KernelArgument::I32(value) => Operand::I32(value),
                KernelArgument::F32(value) => Operand::F32(value),
            })
            .collect();
        self.loader.function(kernel)?.launch(&self.stream, grid, &operands)
    }
}

impl KernelBuffer {
    /// Replaces what is there from byte `offset` on.
    ///
    /// # Errors
    /// A failed transfer.
    ///
    /// # Panics
    /// Where the buffer ends before.
    pub fn write<T: Pod>(&self, offset: usize, values: &[T]) -> Result<()> {
        self.0.write(offset, values)
    }

    /// `count` elements from byte `offset` on, once everything launched before has run.
    ///
    /// # Errors
    /// A failed transfer, or a kernel launched before that failed.
    ///
    /// # Panics
    /// Where the buffer is shorter.
    pub fn read<T: Pod>(&self, offset: usize, count: usize) -> Result<Vec<T>> {
        self.0.read(offset, count)
    }
}
