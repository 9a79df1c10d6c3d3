//! What the emulator finds.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::collective::Collective;
use super::fibre;
use super::memory::{self, Place};
use super::shadow::Access;
use super::thread::Fault;

/// Why a kernel did not run to its end.
#[derive(Debug, Error)]
pub enum EmulatorError {
    /// No compiler.
    #[error("no C++ compiler: {command} could not be started ({source}); install g++ or clang++, or name one in CXX")]
    NoCompiler {
        /// What was tried.
        command: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The compiler refused the text.
    #[error("{kernel} does not compile for the host, see {}:\n{messages}", file.display())]
    Compile {
        /// Name of the kernel.
        kernel: String,
        /// The text as it was compiled.
        file: PathBuf,
        /// What the compiler said.
        messages: String,
    },
    /// The folder of compiled kernels cannot be used.
    #[error("cannot keep compiled kernels in {}: {source}", folder.display())]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The compiled kernel cannot be loaded.
    #[error("{kernel} was compiled but cannot be loaded: {source}")]
    Load {
        /// Name of the kernel.
        kernel: String,
        /// Why.
        source: libloading::Error,
    },
    /// A block that no device runs or that does not consist of warps.
    #[error("{kernel} has {threads} threads a block; it must be a multiple of 32 up to 1024")]
    Threads {
        /// Name of the kernel.
        kernel: String,
        /// Threads of a block.
        threads: u32,
    },
    /// More dynamic shared memory than any device has.
    #[error("{kernel} asks for {bytes} bytes of dynamic shared memory, and devices have at most {limit}")]
    DynamicShared {
        /// Name of the kernel.
        kernel: String,
        /// What it asks for.
        bytes: u32,
        /// What there is.
        limit: usize,
    },
    /// Arguments that the kernel does not take.
    #[error(
        "{kernel} takes arguments ({expected}) and was given ({given}); p is a pointer, i and u 32-bit integers, f a float"
    )]
    Arguments {
        /// Name of the kernel.
        kernel: String,
        /// Kinds by the kernel's own text.
        expected: String,
        /// Kinds given.
        given: String,
    },
    /// A thread did what no kernel may.
    #[error("{kernel}, {line}, block {block:?}, thread {thread}: {failure}")]
    Failed {
        /// Name of the kernel.
        kernel: String,
        /// Where in its text.
        line: Box<Line>,
        /// Index of the block.
        block: [u32; 3],
        /// Thread of the block.
        thread: usize,
        /// What it did.
        failure: Failure,
    },
}

/// A line of a kernel's text, as its `#line` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// What was declared: a pipeline and its stage.
    pub declared: String,
    /// The line of that text.
    pub number: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, line {}", self.declared, self.number)
    }
}

/// What a thread did.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Failure {
    /// Threads that belong together wait in different places.
    #[error("thread {first} waits in {in_first} while thread {second} of its warp has come to {in_second}")]
    Divergent {
        /// The one that waits.
        first: usize,
        /// Where it waits.
        in_first: Collective,
        /// The one that came.
        second: usize,
        /// Where it came to.
        in_second: Collective,
    },
    /// A thread left the kernel without a collective that others wait in.
    #[error("thread {waits} waits in {collective} forever: thread {left} has left the kernel")]
    Left {
        /// The one that waits.
        waits: usize,
        /// Where it waits.
        collective: Collective,
        /// The one that left.
        left: usize,
    },
    /// An access outside of every buffer.
    #[error("access to byte {} of {}, which has {} bytes", place.offset, place.buffer, place.bytes)]
    OutOfBounds {
        /// Where.
        place: Place,
    },
    /// An access far from every buffer.
    #[error("access to address {address:#x}, where there is no buffer")]
    NoBuffer {
        /// The address.
        address: usize,
    },
    /// More local variables or calls than a stack holds.
    #[error("the thread's local variables outgrow its stack")]
    StackOverflow,
    /// A division by zero, or of the least integer by −1.
    #[error("{name} is divided by zero, or its least value by -1")]
    Divided {
        /// The type.
        name: String,
    },
    /// A read of bytes that nobody has written.
    #[error("byte {} of {}, which has {} bytes, is read, and nobody wrote it", place.offset, place.buffer, place.bytes)]
    Unwritten {
        /// Where.
        place: Place,
    },
    /// Two threads touch the same shared bytes without a barrier between them, and one of them writes.
    #[error(
        "it {access} byte {} of {} of {} bytes, which thread {other} {did}: there is no barrier between the two",
        place.offset, place.buffer, place.bytes
    )]
    Race {
        /// Where.
        place: Place,
        /// What the thread does.
        access: Access,
        /// The thread that was there before.
        other: usize,
        /// What that one did.
        did: Access,
    },
    /// Shared bytes are touched that a copy is still under way to.
    #[error(
        "it {access} byte {} of {} of {} bytes, where thread {copier} has not waited for its copy",
        place.offset, place.buffer, place.bytes
    )]
    UnfinishedCopy {
        /// Where.
        place: Place,
        /// What the thread does.
        access: Access,
        /// The thread that started the copy.
        copier: usize,
    },
    /// A value of a type at an address that is not aligned for it.
    #[error("a {name} at address {address:#x}, where its type may not be")]
    MisalignedValue {
        /// The address.
        address: usize,
        /// The type.
        name: String,
    },
    /// An index outside of an array.
    #[error("index {index} into {name}")]
    Index {
        /// The index.
        index: i64,
        /// The array's type.
        name: String,
    },
    /// A result that its type does not hold.
    #[error("the result of a calculation in {name} does not fit")]
    Overflow {
        /// The type.
        name: String,
    },
    /// A shift by more bits than there are, or by a negative number.
    #[error("{name} is shifted by as many bits as it has, or more, or fewer than none")]
    Shift {
        /// The type.
        name: String,
    },
    /// More static shared memory than devices have.
    #[error("static shared arrays of {bytes} bytes, and devices have {limit}")]
    StaticShared {
        /// Sum of the arrays.
        bytes: usize,
        /// What there is.
        limit: usize,
    },
    /// A primitive was given an address outside of shared memory.
    #[error("{primitive} was given an address outside of shared memory")]
    NotShared {
        /// The primitive.
        primitive: &'static str,
    },
    /// A primitive was given an address that is not aligned.
    #[error("{primitive} was given an address {beyond} bytes beyond a multiple of 16")]
    Misaligned {
        /// The primitive.
        primitive: &'static str,
        /// Bytes beyond a multiple of 16.
        beyond: usize,
    },
}

impl Failure {
    /// What a signal means that was raised by the thread whose record lies at `record`.
    pub(super) fn of_fault(fault: Fault, record: usize) -> Self {
        if fibre::is_guard(record, fault.address) {
            return Self::StackOverflow;
        }
        Self::outside(fault.address)
    }

    /// An access outside of every buffer that was given to the kernel.
    #[cold]
    pub(super) fn outside(address: usize) -> Self {
        memory::place(address).map_or(Self::NoBuffer { address }, |place| Self::OutOfBounds { place })
    }

    /// A read of what nobody has written in one of the kernel's buffers.
    #[cold]
    pub(super) fn unwritten(address: usize) -> Self {
        memory::place(address).map_or(Self::NoBuffer { address }, |place| Self::Unwritten { place })
    }
}
