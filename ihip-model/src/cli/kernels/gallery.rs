//! `ihip kernels gallery`: the folder `kernels-generated`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use ihip_runtime::jit::{Architecture, Nvrtc};

use crate::cli::error::{Error, Result};
use crate::cli::progress;
use crate::gallery::{self, GalleryError, MANIFEST};

/// Writes the kernels of Paper3k for two models, and what the compiler says of them
///
/// One file a kernel, and manifest.toml with registers, spills and shared bytes for sm_80, sm_90 and sm_120. Needs
/// libnvrtc and no GPU.
#[derive(Debug, Args)]
pub(super) struct Gallery {
    /// The folder to write; kernels that are there and no longer made are removed
    #[arg(long, value_name = "FOLDER", default_value = "kernels-generated")]
    out: PathBuf,
}

impl Gallery {
    pub(super) fn run(&self) -> Result<()> {
        write_gallery(&self.out)
    }
}

/// Writes the gallery to `out`; kernels that are there and no longer made are removed.
///
/// # Errors
/// Where a kernel does not compile, the compiler is missing, or a file cannot be written.
fn write_gallery(out: &Path) -> Result<()> {
    let nvrtc = Nvrtc::find().map_err(Arc::new).map_err(GalleryError::Jit)?;
    let entries = gallery::entries()?;
    let bar = progress::bar("compiling", entries.len() * Architecture::TESTED.len(), "kernels");
    let manifest = gallery::manifest(&nvrtc, &entries, &|_| bar.inc(1))?;
    bar.finish_and_clear();

    let folders: Vec<&str> = entries.iter().filter_map(|entry| Some(entry.file.split_once('/')?.0)).collect();
    for folder in folders {
        remove_kernels(&out.join(folder))?;
    }
    for entry in &entries {
        write(&out.join(&entry.file), &entry.kernel.text)?;
    }
    let text = toml::to_string(&manifest).expect("plain tables have a TOML form");
    write(&out.join(MANIFEST), format!("# Written by `ihip kernels gallery`.\n{text}"))
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
