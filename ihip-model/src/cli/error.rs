//! Why a command ended early, and with which exit code.

use std::io;
use std::path::PathBuf;

use ihip_dsl::emit::EmitError;
use ihip_dsl::{PlanError, Report};
use ihip_runtime::jit::JitError;
use ihip_runtime::kv::trace::TraceError;
use thiserror::Error as ThisError;

use super::prompt::Source;
use super::pruning::Nearest;
use crate::export::ExportError;
use crate::gallery::GalleryError;
use crate::registry::DuplicateName;
use crate::shapes::KNOWN_SHAPES;

/// Exit code of what failed while it ran.
pub(super) const FAILED: u8 = 1;
/// Exit code of what was refused before any work.
pub(super) const REFUSED: u8 = 2;
/// Exit code of a process that SIGINT ended: 128 + 2, as shells have it.
pub(super) const INTERRUPTED: u8 = 130;

pub(super) type Result<T> = std::result::Result<T, Error>;

/// Why a command ended early.
#[derive(Debug, ThisError)]
pub(super) enum Error {
    /// A model that cannot be used, or failed while it ran.
    #[error(transparent)]
    Model(#[from] crate::Error),
    /// Kernels that cannot be shown.
    #[error(transparent)]
    Gallery(#[from] GalleryError),
    /// Kernels that cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Pipelines that share a name.
    #[error(transparent)]
    DuplicateName(#[from] DuplicateName),
    /// A file that breaks a rule of the language.
    #[error(transparent)]
    Rules(#[from] Report),
    /// A pipeline that does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A prompt or a pipeline that cannot be read.
    #[error("cannot read {input}: {source}")]
    ReadPrompt {
        /// Where it should come from.
        input: Source,
        /// What the system says.
        source: io::Error,
    },
    /// A directory in the place of a file.
    #[error("cannot read {input}: it is a directory, give a text file")]
    PromptIsDirectory {
        /// Where the text should come from.
        input: Source,
    },
    /// A file that is no text.
    #[error("{input} is not UTF-8: byte {offset} (counted from 0) begins no character; convert it first")]
    NotUtf8 {
        /// Where the prompt came from.
        input: Source,
        /// First byte that is wrong.
        offset: usize,
    },
    /// A prompt without a character.
    #[error("{input} is empty: give at least one character")]
    EmptyPrompt {
        /// Where the prompt came from.
        input: Source,
    },
    /// A GPU was asked for where there is none and the CPU would do.
    #[error("{0}; give --device cpu, or leave --device out")]
    NoGpu(ihip_runtime::Error),
    /// Dense attention was asked for where nobody measured it.
    #[error("--dense-path is for a GPU, where it was measured: leave it out, or give --device cuda")]
    NoDensePath,
    /// A prompt of characters that no token stands for.
    #[error("{input} has 0 tokens: the model's vocabulary leaves out all of its characters, give others")]
    NoTokens {
        /// Where the prompt came from.
        input: Source,
    },
    /// A text too short to be scored.
    #[error(
        "{input} has {tokens} token{}: a token is scored by those before it, give at least 2",
        if *tokens == 1 { "" } else { "s" }
    )]
    NothingToScore {
        /// Where the text came from.
        input: Source,
        /// Its tokens.
        tokens: usize,
    },
    /// A pipeline that nobody declared.
    #[error("there is no pipeline {name}: {nearest}")]
    UnknownPruning {
        /// What was asked for.
        name: String,
        /// What there is instead.
        nearest: Nearest,
    },
    /// Attention over every key in the place of a declaration.
    #[error("dense is attention over every key and no pipeline: there is nothing of it to show")]
    NothingDeclared,
    /// A kernel that no pipeline becomes.
    #[error("there is no pipeline or kernel {name} for {model}: {}", said(.nearest))]
    UnknownKernel {
        /// What was asked for.
        name: String,
        /// The model whose kernels were looked through.
        model: String,
        /// Names like it.
        nearest: Vec<String>,
    },
    /// A filter that leaves nothing.
    #[error("no kernel of {pipeline} has “{filter}” in its name: `ihip kernels list {pipeline}` names them all")]
    NothingFiltered {
        /// The pipeline.
        pipeline: String,
        /// The filter.
        filter: String,
    },
    /// A model of which neither the geometry nor a file is known.
    #[error(
        "there is no geometry or file {model:?}: known geometries are {}, or give the path of a GGUF file",
        KNOWN_SHAPES.map(|shape| shape.word).join(", ")
    )]
    UnknownShape {
        /// What was asked for.
        model: String,
    },
    /// A model whose geometry is not known, where a file would not do.
    #[error(
        "there is no geometry {model:?}: known geometries are {}",
        KNOWN_SHAPES.map(|shape| shape.word).join(", ")
    )]
    UnknownGeometry {
        /// What was asked for.
        model: String,
    },
    /// A layer beyond the model's.
    #[error("there is no layer {layer}: the model has {layers}, counted from 0")]
    NoSuchLayer {
        /// The layer asked for.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A step longer than what it ends.
    #[error("--rows {rows} is more than the {context} tokens of the context: give at most as many")]
    MoreRowsThanTokens {
        /// Rows asked for.
        rows: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// Kernels for which there is no text.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// Something about compiling.
    #[error(transparent)]
    Jit(#[from] JitError),
    /// Kernels that do not compile; which and why has been said.
    #[error("{failed} of {all} compilations failed")]
    DoNotCompile {
        /// Those that failed.
        failed: usize,
        /// All of them.
        all: usize,
    },
    /// A manifest of the gallery that cannot be read.
    #[error("cannot read the manifest {}: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Kernels that were compiled and could not be kept.
    #[error("{kernels} compiled kernels could not be written to {}: is the disk full or read-only?", folder.display())]
    NotKept {
        /// How many.
        kernels: u64,
        /// The cache.
        folder: PathBuf,
    },
    /// A page trace that cannot be replayed.
    #[error("{}: {error}", path.display())]
    PageTrace {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: TraceError,
    },
    /// A share of keys and values in which no page could move.
    #[error(
        "a share of {share} is too small: pages move through at least {}, give that or more",
        (least * 1e4).ceil() / 1e4
    )]
    SmallShare {
        /// The share.
        share: f64,
        /// The least share.
        least: f64,
    },
    /// A page trace that ends too early for what is measured with it.
    #[error(
        "{} has {steps} steps, and {needed} are taken: record them with `ihip generate --dump-pages --max-new-tokens {}`",
        path.display(),
        needed + 1
    )]
    ShortTrace {
        /// The file.
        path: PathBuf,
        /// Its steps.
        steps: usize,
        /// Steps that are needed.
        needed: usize,
    },
    /// Types of keys and values that belong to no context.
    #[error("{types} types of keys and values are given for {contexts} contexts: give one, or one for each")]
    Unpaired {
        /// Types.
        types: usize,
        /// Contexts.
        contexts: usize,
    },
    /// Refresh intervals that are not one a stage.
    #[error("--refresh has {given} intervals, but {pipeline} has {stages} stages: give one for each")]
    Intervals {
        /// Intervals.
        given: usize,
        /// The pipeline.
        pipeline: String,
        /// Stages of it.
        stages: usize,
    },
    /// Refresh intervals with a period that nobody would wait for.
    #[error(
        "the refresh intervals of {pipeline}, {}, come together again after more than {most} steps: give intervals with a \
         smaller common multiple",
        intervals.iter().map(usize::to_string).collect::<Vec<_>>().join(" and ")
    )]
    LongPeriod {
        /// The pipeline.
        pipeline: String,
        /// Its intervals.
        intervals: Vec<usize>,
        /// Steps of the longest period.
        most: usize,
    },
    /// A key that names no entry of the cache, or several.
    #[error("{found} entries of the cache begin with {key}: `ihip cache list` shows their keys")]
    NoSuchEntry {
        /// The key, or its beginning.
        key: String,
        /// How many there are.
        found: usize,
    },
    /// A request that does not fit into memory.
    #[error(
        "{prompt} prompt tokens and {new} new ones need {cache} bytes of cache ({token} bytes a token) besides {model} bytes \
         for the model, but {device} has {available} bytes free: shorten the prompt or lower --max-new-tokens{}",
        if *.own_memory { ", or leave keys and values with the host by --gpu-kv" } else { "" }
    )]
    DoesNotFit {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens that were asked for.
        new: usize,
        /// Bytes of the cache.
        cache: u64,
        /// Bytes of the cache for one token.
        token: u64,
        /// Bytes of weights and activations.
        model: u64,
        /// The device.
        device: String,
        /// Bytes that are free on it.
        available: u64,
        /// Whether they are the device's own, and the host has others.
        own_memory: bool,
    },
    /// A word in the place of a token id.
    #[error("“{word}” is not a token id: give numbers from 0, separated by white space")]
    NotATokenId {
        /// The word.
        word: String,
    },
    /// A file that cannot be written, found out before any work.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A result that cannot be written to its file.
    #[error("cannot write {path}: {source}", path = .path.display())]
    WriteResult {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A signal handler that cannot be installed.
    #[error("cannot listen for Ctrl-C: {0}")]
    Signal(#[from] ctrlc::Error),
    /// A result that cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The reader of standard output has left; there is nothing more to do.
    #[error("standard output is closed")]
    ClosedOutput,
}

impl From<ihip_runtime::Error> for Error {
    fn from(error: ihip_runtime::Error) -> Self {
        Self::Model(error.into())
    }
}

impl Error {
    /// Why a GPU cannot be opened where the CPU would do.
    pub(super) fn without_gpu(error: ihip_runtime::Error) -> Self {
        match error {
            missing @ ihip_runtime::Error::NoSuchDevice { .. } => Self::NoGpu(missing),
            error => error.into(),
        }
    }

    /// The exit code of a command that ends with this.
    pub(super) fn exit_code(&self) -> u8 {
        use ihip_runtime::Error as Runtime;
        match self {
            Self::Model(crate::Error::Interrupted) => INTERRUPTED,
            Self::Model(crate::Error::Runtime(
                Runtime::OutOfMemory { .. }
                | Runtime::NoSuchDevice { .. }
                | Runtime::UnusableDevice { .. }
                | Runtime::OldDriver { .. }
                | Runtime::PrefillChunk { .. }
                | Runtime::Tuning(_)
                | Runtime::Kv(_),
            )) => REFUSED,
            Self::Model(crate::Error::Runtime(Runtime::Jit(error))) if is_refusal(error) => REFUSED,
            Self::Model(crate::Error::Runtime(_))
            | Self::Gallery(_)
            | Self::Export(ExportError::Jit(_) | ExportError::Write { .. } | ExportError::NearTies { .. })
            | Self::DoNotCompile { .. }
            | Self::NotKept { .. }
            | Self::Signal(_)
            | Self::Output(_)
            | Self::WriteResult { .. } => FAILED,
            Self::Jit(error) => {
                if is_refusal(error) {
                    REFUSED
                } else {
                    FAILED
                }
            }
            Self::ClosedOutput => 0,
            _ => REFUSED,
        }
    }

    /// Whether kernels differ from the reference as they are declared.
    pub(super) fn is_untunable(&self) -> bool {
        matches!(self, Self::Model(crate::Error::Runtime(ihip_runtime::Error::Untunable { .. })))
    }

    /// Whether a person should read it: who pressed Ctrl-C or closed the pipe knows.
    pub(super) fn is_worth_saying(&self) -> bool {
        !matches!(self, Self::ClosedOutput | Self::Model(crate::Error::Interrupted))
    }
}

/// Whether an error of the compiler is about what was asked of it, known before any work.
fn is_refusal(error: &JitError) -> bool {
    use JitError as J;
    matches!(
        error,
        J::LibraryNotFound { .. }
            | J::LibraryUnusable { .. }
            | J::NoSuchArchitecture { .. }
            | J::UnsupportedArchitecture { .. }
            | J::DumpWord { .. }
            | J::NoDisassembler { .. }
            | J::Override(_)
            | J::NoCacheFolder
            | J::NoJitWord { .. }
            | J::Store(_)
            | J::CacheKey(_)
    )
}

/// What may have been meant by a name that there is not.
fn said(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return "`ihip kernels list NAME` names those of a pipeline".to_owned();
    }
    format!("did you mean {}?", nearest.join(" or "))
}
