//! What can go wrong while a plan runs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::jit::JitError;
use crate::tuning::TableError;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the runtime.
#[derive(Debug, Error)]
pub enum Error {
    /// A request needs more memory than there is.
    #[error(
        "{what} needs {needed} bytes, but {device} has {available} free: shorten the prompt or lower --max-new-tokens"
    )]
    OutOfMemory {
        /// What asked.
        what: String,
        /// The device.
        device: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that were free.
        available: u64,
    },
    /// A request ran past the positions it reserved.
    #[error("the request reserved {capacity} positions and was asked for position {position}")]
    CapacityExceeded {
        /// Positions reserved.
        capacity: usize,
        /// First position that does not fit.
        position: usize,
    },
    /// The device named is not in this machine.
    #[error("there is no device {name}: {reason}")]
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// What was found instead, and what to do.
        reason: String,
    },
    /// The device named is in this machine, and something that it takes is missing or too old.
    #[error("{name} cannot be used: {reason}")]
    UnusableDevice {
        /// What was asked for.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A kernel does not compile, or the compiler is missing.
    #[error(transparent)]
    Jit(#[from] Arc<JitError>),
    /// The emitter has no kernels for the model.
    #[error(transparent)]
    Emit(#[from] ihip_dsl::emit::EmitError),
    /// A table of launch tunings that is asked for and cannot be used.
    #[error("IHIP_TUNING: {0}")]
    Tuning(#[from] TableError),
    /// Kernels as they are declared differ from the reference: nothing can be compared with them.
    #[error("{plan} cannot be tuned: its kernels differ from the reference as they are ({mistake})")]
    Untunable {
        /// The pipeline.
        plan: String,
        /// How they differ.
        mistake: String,
    },
    /// A trial that cannot be kept.
    #[error("cannot write {}: {source}", path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A call of the CUDA driver failed.
    #[error("{call} failed: {source}")]
    Cuda {
        /// Function of the driver.
        call: &'static str,
        /// Its result.
        source: cudarc::driver::DriverError,
    },
    /// A call of cuBLASLt failed.
    #[error("{call} failed: {source}")]
    Cublas {
        /// Function of the library.
        call: &'static str,
        /// Its result.
        source: cudarc::cublaslt::result::CublasError,
    },
    /// A launch whose arguments are not the kernel's: the launch list and the kernel disagree.
    #[error("kernel {kernel} takes {takes} and was given {given}")]
    ArgumentMismatch {
        /// The kernel.
        kernel: String,
        /// Types of its arguments.
        takes: String,
        /// What the launch list gave.
        given: String,
    },
    /// A launch list names something that is not there.
    #[error("the launch list names {name}, which this plan does not have")]
    NotInPlan {
        /// A kernel or a buffer.
        name: String,
    },
    /// The driver ended a recording and gave back no graph.
    #[error("the driver recorded no graph of {what}: update it, or run each operation on its own")]
    NothingRecorded {
        /// What was recorded.
        what: &'static str,
    },
    /// A measurement of a context without a token.
    #[error("a context of {context} tokens has no step of {rows} rows to time: give at least 1 of both")]
    NothingToTime {
        /// Tokens of the context.
        context: usize,
        /// Rows of its last steps.
        rows: usize,
    },
    /// A candidate that is to be timed, and has not passed its check.
    #[error("{kernel} is to be timed without a candidate that was checked: check one first")]
    NoCandidate {
        /// The kernel that it is for.
        kernel: String,
    },
    /// A choice for a kernel under which it has another name, so that it cannot be compared.
    #[error("with {tuning:?} there is no kernel {kernel}: take that out of its space")]
    NoTunedKernel {
        /// The kernel.
        kernel: String,
        /// What was chosen for it.
        tuning: ihip_dsl::tuning::Tuning,
    },
    /// More than kernels can count.
    #[error("kernels count up to {most}, and are to be handed {value}: shorten the prompt or lower --max-new-tokens")]
    TooManyForKernels {
        /// What they are to be handed.
        value: usize,
        /// The most that they take.
        most: i32,
    },
    /// A step longer than a device takes.
    #[error("a step of {rows} tokens is longer than {longest}: read the prompt in several")]
    LongStep {
        /// Tokens of the step.
        rows: usize,
        /// Tokens of the longest step.
        longest: usize,
    },
    /// A driver that does not allocate memory of the host as a cache of two tiers needs it.
    #[error(
        "the driver is of CUDA {}.{}, and keys and values that lie with the host take one of CUDA {}.{} or later: install that, \
         or leave all of them on the GPU with a larger --gpu-kv or a shorter request",
        version.0, version.1, oldest.0, oldest.1
    )]
    OldDriver {
        /// Its CUDA version, major and minor.
        version: (i32, i32),
        /// The oldest that does.
        oldest: (i32, i32),
    },
    /// A tensor without room for what an operation reads or writes, or of another type.
    #[error(
        "{operation} takes {rows} rows of {columns} columns of {element:?}, and its tensor has {held_rows} rows of \
         {held_columns} columns of {held_element:?}"
    )]
    TensorMismatch {
        /// The operation.
        operation: &'static str,
        /// Rows it reads or writes.
        rows: usize,
        /// Columns of each.
        columns: usize,
        /// Element type of each.
        element: ihip_dsl::emit::Element,
        /// Rows of the tensor.
        held_rows: usize,
        /// Its columns.
        held_columns: usize,
        /// Element type that was last written to it.
        held_element: ihip_dsl::emit::Element,
    },
    /// Something about the cache of two tiers.
    #[error(transparent)]
    Kv(#[from] crate::kv::KvError),
    /// A token that the model does not have.
    #[error("token {token} is beyond the vocabulary of {vocabulary} tokens")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocabulary: usize,
    },
    /// A prefill chunk with which masks would depend on where chunks end.
    #[error(
        "a prefill chunk of {chunk} tokens does not do: take a multiple of {multiple} that divides {segment}, or a multiple of {segment} up to {longest}"
    )]
    PrefillChunk {
        /// Tokens asked for.
        chunk: usize,
        /// What it has to be a multiple of: the largest query block, 64 at least.
        multiple: usize,
        /// Tokens of a segment.
        segment: usize,
        /// Tokens of the longest step.
        longest: usize,
    },
    /// Threads that cannot be started.
    #[error("cannot start {threads} threads for the CPU device: {source}")]
    Threads {
        /// Threads asked for, 0 for one a core.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
}

impl From<JitError> for Error {
    fn from(error: JitError) -> Self {
        Self::Jit(Arc::new(error))
    }
}
