//! What can go wrong between a model's name and its text.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::weights::Malformed;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the model library.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A path that names no regular file.
    #[error("{path} is not a file: give the path of a GGUF file", path = .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A model file that cannot be used.
    #[error("cannot use {path}: {reason}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        reason: Malformed,
    },
    /// The tokenizer failed on a text.
    #[error("cannot encode the text: {source}")]
    Encode {
        /// What the tokenizer says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A token id that the vocabulary does not have.
    #[error("there is no token {id}: the vocabulary has {vocabulary} tokens, from 0")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Tokens of the vocabulary.
        vocabulary: usize,
    },
    /// A chat template that does not compile or does not run.
    #[error("cannot use the chat template of {path}: {source}; leave --chat out", path = .path.display())]
    Template {
        /// The model file.
        path: PathBuf,
        /// What the template engine says.
        source: minijinja::Error,
    },
    /// A chat template that leaves the user's message out.
    #[error("the chat template of {path} does not contain the user's message: leave --chat out", path = .path.display())]
    TemplateWithoutMessage {
        /// The model file.
        path: PathBuf,
    },
}
