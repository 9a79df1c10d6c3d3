//! A model on disk: weights, tokenizer and chat template of one GGUF file.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::chat::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::weights::{Config, Layer, Malformed, Weights};
use crate::{Error, Result};

/// An open GGUF file whose directory, metadata and tensor shapes have been checked.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    weights: Weights<Mmap>,
}

impl ModelFile {
    /// Maps and checks the file. Tensor data is read when it is asked for.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::NotAFile`], or [`Error::Malformed`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let read = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(read)?;
        if !file.metadata().map_err(read)?.is_file() {
            return Err(Error::NotAFile { path });
        }
        // SAFETY: the mapping is private and only read. Nothing can keep another process from changing the file
        // meanwhile; the model cache replaces files by renaming, which leaves a mapped file as it was.
        let bytes = unsafe { Mmap::map(&file) }.map_err(read)?;
        let weights = Weights::parse(bytes).map_err(|reason| Error::Malformed {
            path: path.clone(),
            reason,
        })?;
        Ok(Self { path, weights })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's numbers.
    #[must_use]
    pub const fn config(&self) -> &Config {
        self.weights.config()
    }

    /// One tensor by its name in the file; see [`Weights::tensor`].
    ///
    /// # Errors
    /// [`Error::Malformed`] when the file has no such tensor.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        self.weights
            .tensor(name)
            .map_err(|reason| self.malformed(reason))
    }

    /// The tensors of layer `index`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the model has no such layer.
    pub fn layer(&self, index: usize) -> Result<Layer> {
        self.weights
            .layer(index)
            .map_err(|reason| self.malformed(reason))
    }

    /// Token embeddings, `[vocabulary][hidden]`.
    ///
    /// # Errors
    /// None for an open file.
    pub fn embedding(&self) -> Result<Vec<f32>> {
        self.weights
            .embedding()
            .map_err(|reason| self.malformed(reason))
    }

    /// RMS norm after the last layer, `[hidden]`.
    ///
    /// # Errors
    /// None for an open file.
    pub fn output_norm(&self) -> Result<Vec<f32>> {
        self.weights
            .output_norm()
            .map_err(|reason| self.malformed(reason))
    }

    /// Output matrix, `[vocabulary][hidden]`, or `None` where the embedding is used for it.
    ///
    /// # Errors
    /// None for an open file.
    pub fn output(&self) -> Result<Option<Vec<f32>>> {
        self.weights
            .output()
            .map_err(|reason| self.malformed(reason))
    }

    /// The file's tokenizer.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is missing, damaged or of another family than byte-level BPE.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::read(self.weights.file(), self.config().vocabulary);
        tokenizer.map_err(|reason| self.malformed(reason))
    }

    /// The file's chat template.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the file has none or its value is no string, [`Error::Template`] when it does not
    /// compile.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::read(self.weights.file(), &self.path)
    }

    fn malformed(&self, reason: Malformed) -> Error {
        Error::Malformed {
            path: self.path.clone(),
            reason,
        }
    }
}
