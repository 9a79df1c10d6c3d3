//! `ihip kernels export` without a name: the folder `kernels-generated`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ihip_runtime::jit::{Architecture, Nvrtc};

use crate::cli::error::{Error, Result};
use crate::cli::progress;
use crate::gallery::{self, GalleryError, MANIFEST};

/// Writes the gallery to `out`; kernels that are there and no longer made are removed.
///
/// # Errors
/// Where a kernel does not compile, the compiler is missing, or a file cannot be written.
pub(super) fn write_gallery(out: &Path) -> Result<()> {
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
    write(&out.join(MANIFEST), format!("# Written by `ihip kernels export`.\n{text}"))
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
pub(super) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, bytes))
        .map_err(|source| Error::WriteResult { path: path.to_owned(), source })
}
