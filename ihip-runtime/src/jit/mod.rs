//! From CUDA text to device code.

pub mod cache;

/// What the compiler says a kernel needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread spills to local memory.
    pub spill_bytes: u32,
    /// Bytes of static shared memory a block.
    pub shared_bytes: u32,
    /// Bytes of stack a thread.
    pub stack_bytes: u32,
}
