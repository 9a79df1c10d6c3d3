//! `ihip kernels`: the CUDA text that pipelines become.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ihip_runtime::jit::{Architecture, Nvrtc};

use super::error::{Error, Result};
use super::progress;
use crate::gallery::{self, MANIFEST};

/// Shows what pipelines become on a GPU, without one
#[derive(Debug, Args)]
pub(super) struct Kernels {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Export(Export),
}

/// Writes the kernels of Paper3k for two models, and what the compiler says of them
///
/// One file a kernel, and manifest.toml with registers, spills and shared bytes for sm_80, sm_90 and sm_120. Needs
/// libnvrtc and no GPU.
#[derive(Debug, Args)]
struct Export {
    /// The folder to write; kernels that are there and no longer made are removed
    #[arg(long, value_name = "FOLDER", default_value = "kernels-generated")]
    out: PathBuf,
}

impl Kernels {
    /// Runs the command.
    ///
    /// # Errors
    /// Where a kernel does not compile, the compiler is missing, or a file cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        match &self.command {
            Command::Export(export) => export.run(),
        }
    }
}

impl Export {
    fn run(&self) -> Result<()> {
        let nvrtc = Nvrtc::find().map_err(std::sync::Arc::new).map_err(gallery::GalleryError::Jit)?;
        let entries = gallery::entries()?;
        let bar = progress::bar("compiling", entries.len() * Architecture::TESTED.len(), "kernels");
        let manifest = gallery::manifest(&nvrtc, &entries, &|_| bar.inc(1))?;
        bar.finish_and_clear();

        let folders: Vec<&str> = entries.iter().filter_map(|entry| Some(entry.file.split_once('/')?.0)).collect();
        for folder in folders {
            remove_kernels(&self.out.join(folder))?;
        }
        for entry in &entries {
            write(&self.out.join(&entry.file), &entry.kernel.text)?;
        }
        let text = toml::to_string(&manifest).expect("plain tables have a TOML form");
        write(&self.out.join(MANIFEST), &format!("# Written by `ihip kernels export`.\n{text}"))
    }
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

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .map_err(|source| Error::WriteResult { path: path.to_owned(), source })
}
