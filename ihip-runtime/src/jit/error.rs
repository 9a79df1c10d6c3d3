//! What can go wrong on the way from text to a cubin.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::library::NAMES;
use super::{Architecture, Diagnostics};

/// Errors of the compiler and of finding it.
#[derive(Debug, Error)]
pub enum JitError {
    /// There is no NVRTC.
    #[error(
        "NVRTC is missing: none of {} is in {}; install CUDA 12 or 13 or `pip install nvidia-cuda-nvrtc`, or set IHIP_NVRTC to the library or its folder",
        NAMES.join(", "),
        looked_in.join(", ")
    )]
    LibraryNotFound {
        /// Every place that was searched.
        looked_in: Vec<String>,
    },
    /// There is a file of that name, but it is not a usable NVRTC.
    #[error("{} is no usable NVRTC ({source}): set IHIP_NVRTC to one of CUDA 12 or 13", path.display())]
    LibraryUnusable {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: libloading::Error,
    },
    /// The word names no architecture.
    #[error("{word} is no architecture: write sm_ and a compute capability, such as sm_90 or sm_90a")]
    NoSuchArchitecture {
        /// What was written.
        word: String,
    },
    /// This NVRTC does not compile for the architecture.
    #[error(
        "NVRTC {}.{} does not compile for {architecture} (it does for {}): use a newer NVRTC",
        version.0,
        version.1,
        supported.iter().map(Architecture::to_string).collect::<Vec<_>>().join(", ")
    )]
    UnsupportedArchitecture {
        /// What was asked for.
        architecture: Architecture,
        /// Major and minor version of the library.
        version: (u32, u32),
        /// What it can do.
        supported: Vec<Architecture>,
    },
    /// The compiler rejected the text.
    #[error("{kernel} does not compile for {architecture}\n{diagnostics}options: {}\n{saved}", options.join(" "))]
    Rejected {
        /// The kernel.
        kernel: String,
        /// The architecture.
        architecture: Architecture,
        /// The compiler's lines, with the text around them.
        diagnostics: Box<Diagnostics>,
        /// What the compiler was given.
        options: Vec<String>,
        /// Where the whole text lies.
        saved: Saved,
    },
    /// A call of the library failed for another reason than the text.
    #[error("{call} failed for {kernel} with {code} ({meaning}); options: {}", options.join(" "))]
    Failed {
        /// Function of the library.
        call: &'static str,
        /// The kernel.
        kernel: String,
        /// Its result code.
        code: i32,
        /// The library's words for the code, and its log.
        meaning: String,
        /// What the compiler was given.
        options: Vec<String>,
    },
    /// The compiler's log does not report the kernel's registers.
    #[error("NVRTC reports no registers for {kernel} on {architecture}; its log: {log:?}")]
    NoResources {
        /// The kernel.
        kernel: String,
        /// The architecture.
        architecture: Architecture,
        /// The whole log.
        log: String,
    },
    /// Compiling is switched off, and the kernel is not in the store.
    #[error(
        "IHIP_NO_JIT is set and {kernel} for {architecture} is not in the cache: compile it ahead with \
         `ihip kernels compile --arch {architecture}` and the --model, --kv-type, --dense-path and IHIP_TUNING of the run, or \
         unset it"
    )]
    Disabled {
        /// The kernel.
        kernel: String,
        /// The architecture.
        architecture: Architecture,
    },
    /// No variable names a folder for a store.
    #[error("there is no folder for a cache: set IHIP_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheFolder,
    /// The store is asked for and cannot be used.
    #[error("the cache of cubins cannot be used: {0}")]
    Store(super::cache::StoreError),
    /// The secret that entries are to be signed with cannot be used.
    #[error("IHIP_CACHE_KEY: {0}")]
    CacheKey(super::cache::StoreError),
    /// `IHIP_NO_JIT` is neither 1 nor empty.
    #[error("IHIP_NO_JIT is “{value}”: give 1, or unset it")]
    NoJitWord {
        /// What it is.
        value: String,
    },
    /// `IHIP_DUMP` asks for something that there is not.
    #[error("IHIP_DUMP has the word “{word}”: give plan, cuda, ptx, sass, or several with commas between them")]
    DumpWord {
        /// The word.
        word: String,
    },
    /// A file of `IHIP_DUMP` cannot be written.
    #[error("IHIP_DUMP: cannot write {}: {source}", path.display())]
    Dump {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nothing here turns a cubin into SASS.
    #[error(
        "IHIP_DUMP asks for sass, and neither {} is in {}: put one on the PATH, set CUDA_PATH, or leave sass out",
        names.join(" nor "),
        looked_in.join(", ")
    )]
    NoDisassembler {
        /// Programs that would do.
        names: [&'static str; 2],
        /// Every place that was searched.
        looked_in: Vec<String>,
    },
    /// The program that should turn a cubin into SASS failed.
    #[error("{} cannot disassemble the cubin: {reason}", program.display())]
    Disassembler {
        /// The program.
        program: PathBuf,
        /// What it or the system says.
        reason: String,
    },
    /// Hand-edited text that may not be used.
    #[error("IHIP_KERNEL_OVERRIDE: {0}")]
    Override(#[from] super::cache::StoreError),
    /// A NUL byte in the text, which the library takes as its end.
    #[error("the text of {kernel} has a NUL byte at offset {offset}")]
    NulByte {
        /// The kernel.
        kernel: String,
        /// Bytes before it.
        offset: usize,
    },
}

/// Where the text of a rejected kernel was saved.
#[derive(Debug)]
pub enum Saved {
    /// In this file.
    At(PathBuf),
    /// Not at all.
    Failed {
        /// The file that could not be written.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nowhere: no variable names a folder for caches.
    NoFolder,
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(path) => write!(f, "whole text: {}", path.display()),
            Self::Failed { path, source } => {
                write!(f, "whole text: not saved, {} ({source})", path.display())
            }
            Self::NoFolder => f.write_str("whole text: not saved, set IHIP_CACHE or HOME"),
        }
    }
}
