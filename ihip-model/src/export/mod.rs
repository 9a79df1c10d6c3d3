//! Kernels as files: cubins, texts and a manifest, for programs that know nothing of Rust.
//!
//! ```text
//! manifest.json                 entries, arguments, launches, hashes
//! <kernel>.cu                   the text
//! sm_90/<kernel>.cubin          what it was compiled to
//! test/layer3.json, layer3/     inputs of one layer, and what the reference computes from them
//! ```
//!
//! `docs/loader/load_kernels.py` reads such a folder, runs it on a GPU and compares.

mod manifest;
mod vector;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ihip_dsl::Pipeline;
use ihip_dsl::emit::{Extent, Program};
use ihip_runtime::jit::{Compiler, JitError};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use manifest::{
    Attention, Binary, Decoding, Exported, FORM, File, Launched, Manifest, Memory, Passed, Reach, Sequence, Taken,
};
pub use vector::{Expected, Lists, Step, Vector};

use manifest::buffers;

/// Name of the manifest in the folder.
pub const MANIFEST: &str = "manifest.json";

/// Why kernels cannot be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A kernel does not compile.
    #[error(transparent)]
    Jit(#[from] Arc<JitError>),
    /// The folder holds something, which might be mistaken for a part of the export.
    #[error("{} is not empty: name a new folder", folder.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No drawn inputs of a layer leave every decision clear.
    #[error("layer {layer}: all {drawn} inputs that were drawn have two scores that are nearly equal")]
    NearTies {
        /// The layer.
        layer: usize,
        /// Inputs that were drawn.
        drawn: u64,
    },
}

/// What is to be exported.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The kernels.
    pub program: &'a Program,
    /// What their reference is computed from; `None` for dense attention.
    pub pipeline: Option<&'a Pipeline>,
    /// Name of the model.
    pub model: &'a str,
    /// What launches are laid out for.
    pub extent: Extent,
    /// Whether test vectors are wanted.
    pub vectors: bool,
}

impl Export<'_> {
    /// Writes everything into `folder`, which must be new or empty, compiled by each of `compilers`; `done` hears the
    /// name of each compilation.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn write(
        &self,
        folder: &Path,
        compilers: &[Compiler],
        done: &(dyn Fn(&str) + Sync),
    ) -> Result<Manifest, ExportError> {
        let mut content = fs::read_dir(folder).into_iter().flatten();
        if content.next().is_some() {
            return Err(ExportError::NotEmpty { folder: folder.to_owned() });
        }
        let folder = Folder(folder);
        let (plan, kernels) = (self.program.plan(), self.program.kernels());
        let launches = Sequence::of(self.program, self.extent);
        let mut exported = Vec::new();
        for kernel in &kernels {
            let text = folder.write(format!("{}.cu", kernel.name), kernel.text.as_bytes())?;
            exported.push(Exported::new(kernel, text, &launches));
        }
        let texts: Vec<(&str, &str)> = kernels.iter().map(|kernel| (&*kernel.name, &*kernel.text)).collect();
        for compiler in compilers {
            let architecture = compiler.architecture().to_string();
            for (exported, cubin) in exported.iter_mut().zip(compiler.cubins(&texts, done)?) {
                let file = folder.write(format!("{architecture}/{}.cubin", exported.entry), &cubin.image)?;
                exported.cubins.insert(architecture.clone(), Binary::new(file, &cubin.resources));
            }
        }
        let mut tests = Vec::new();
        if self.vectors {
            for sequence in &launches {
                tests.push(vector::write(self.program, self.pipeline, sequence.layers[0], &folder)?);
            }
        }
        let version = compilers.first().map_or((0, 0), Compiler::nvrtc_version);
        let manifest = Manifest {
            form: FORM,
            pipeline: plan.name().to_owned(),
            model: self.model.to_owned(),
            layers: plan.layers(),
            geometry: plan.geometry().into(),
            nvrtc: format!("{}.{}", version.0, version.1),
            extent: self.extent.into(),
            buffers: buffers(self.program, self.extent),
            kernels: exported,
            launches,
            tests,
        };
        folder.json(MANIFEST.to_owned(), &manifest)?;
        Ok(manifest)
    }
}

/// The folder that is written.
struct Folder<'a>(&'a Path);

impl Folder<'_> {
    /// Writes a file, and the folders on its way.
    fn write(&self, file: String, bytes: &[u8]) -> Result<File, ExportError> {
        let path = self.0.join(&file);
        let folder = path.parent().unwrap_or(self.0);
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes));
        written.map_err(|source| ExportError::Write { path, source })?;
        Ok(File { file, sha256: sha256(bytes) })
    }

    fn json(&self, file: String, value: &impl serde::Serialize) -> Result<File, ExportError> {
        let mut text = serde_json::to_string_pretty(value).expect("plain tables have a JSON form");
        text.push('\n');
        self.write(file, text.as_bytes())
    }
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
