//! `ihip kernels gallery`: the folder `kernels-generated`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use ihip_runtime::jit::{Architecture, Nvrtc};

use crate::cli::error::{Error, Result};
use crate::cli::progress;
use crate::gallery::{self, GalleryError, MANIFEST, Manifest};

/// Writes the kernels of published pipelines for two models, and what the compiler says of them
///
/// One file a text, and manifest.toml with registers, spills and shared bytes for sm_80, sm_90 and sm_120. A kernel that
/// takes more than the manifest said before is refused unless --because says why. Needs libnvrtc and no GPU.
#[derive(Debug, Args)]
pub(super) struct Gallery {
    /// The folder to write; kernels that are there and no longer made are removed
    #[arg(long, value_name = "FOLDER", default_value = "kernels-generated")]
    out: PathBuf,
    /// Why some kernels take more than before
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
    /// Write and compile nothing: hold the folder's manifest against an earlier one
    #[arg(long, value_name = "FILE", conflicts_with = "because")]
    against: Option<PathBuf>,
}

impl Gallery {
    pub(super) fn run(&self) -> Result<()> {
        let kept = read(&self.out.join(MANIFEST))?;
        if let Some(against) = &self.against {
            let before = read(against)?.ok_or_else(|| missing(against))?;
            let mut now = kept.ok_or_else(|| missing(&self.out.join(MANIFEST)))?;
            return Ok(now.hold_against(&before, None)?);
        }
        let nvrtc = Nvrtc::find().map_err(Arc::new).map_err(GalleryError::Jit)?;
        let entries = gallery::entries()?;
        let bar = progress::bar("compiling", entries.len() * Architecture::TESTED.len(), "kernels");
        let mut manifest = gallery::manifest(&nvrtc, &entries, &|_| bar.inc(1))?;
        bar.finish_and_clear();
        if let Some(before) = kept {
            manifest.hold_against(&before, self.because.as_deref())?;
        }

        let folders: BTreeSet<&str> = entries.iter().filter_map(|entry| Some(entry.file.split_once('/')?.0)).collect();
        for folder in folders {
            remove_kernels(&self.out.join(folder))?;
        }
        for entry in &entries {
            write(&self.out.join(&entry.file), &entry.kernel.text)?;
        }
        let text = toml::to_string(&manifest).expect("plain tables have a TOML form");
        write(&self.out.join(MANIFEST), format!("# Written by `ihip kernels gallery`.\n{text}"))
    }
}

/// A manifest; `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Manifest>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Manifest { path: path.to_owned(), reason: error.to_string() }),
    };
    let parsed = toml::from_str(&text).map(Some);
    parsed.map_err(|error| Error::Manifest { path: path.to_owned(), reason: error.message().to_owned() })
}

fn missing(path: &Path) -> Error {
    Error::Manifest { path: path.to_owned(), reason: "it is not there".to_owned() }
}

/// Removes the `.cu` files of a folder that may not be there.
fn remove_kernels(folder: &Path) -> Result<()> {
    let Ok(files) = fs::read_dir(folder) else { return Ok(()) };
    for file in files.filter_map(|file| Some(file.ok()?.path())) {
        if file.extension().is_some_and(|extension| extension == "cu") {
            fs::remove_file(&file).map_err(|source| Error::WriteResult { path: file, source })?;
        }
    }
    Ok(())
}

/// Writes a file, and its folder where that is missing.
///
/// # Errors
/// [`Error::WriteResult`].
fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, bytes))
        .map_err(|source| Error::WriteResult { path: path.to_owned(), source })
}
