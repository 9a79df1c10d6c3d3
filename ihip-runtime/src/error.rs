//! What can go wrong while a plan runs.

use thiserror::Error;

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
    /// A token that the model does not have.
    #[error("token {token} is beyond the vocabulary of {vocabulary} tokens")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocabulary: usize,
    },
    /// A prefill chunk with which masks would depend on where chunks end.
    #[error("a prefill chunk of {chunk} tokens does not do: take a multiple of {block} that divides {segment}")]
    PrefillChunk {
        /// Tokens asked for.
        chunk: usize,
        /// Queries of the largest query block.
        block: usize,
        /// Tokens of a segment.
        segment: usize,
    },
    /// Threads that cannot be started.
    #[error("cannot start {threads} threads for the CPU device: {source}")]
    Threads {
        /// Threads asked for, 0 for one a core.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
    /// A kernel does not compile, or the compiler is missing.
    #[error(transparent)]
    Jit(#[from] crate::jit::JitError),
}
