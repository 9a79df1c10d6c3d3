//! `--dump-pages`: the pages that every decoding step reads, as `ihip kv replay` takes them.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ihip_dsl::Plan;
use ihip_runtime::Device;
use ihip_runtime::kv::trace::{Header, write_header, write_layer};
use tempfile::NamedTempFile;

use super::error::{Error, Result};
use super::output;
use crate::generate::Generation;

/// A page trace on its way to its file.
#[derive(Debug)]
pub(super) struct PageTrace {
    path: PathBuf,
    /// Takes the place of `path` once all of it is written.
    file: BufWriter<NamedTempFile>,
}

impl PageTrace {
    /// Makes sure that `path` can be written before anything is computed.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), file: BufWriter::new(output::beside(path)?) })
    }

    /// Begins with what follows a prompt of so many tokens.
    ///
    /// # Errors
    /// [`Error::WriteResult`].
    pub(super) fn begin(&mut self, plan: &Plan, prompt: usize) -> Result<()> {
        let header = Header { layers: plan.layers() as u32, page: plan.geometry().page, prompt: prompt as u32 };
        let Self { path, file } = self;
        write_header(file, header).map_err(|source| Error::WriteResult { path: path.clone(), source })
    }

    /// Adds what the last step read.
    ///
    /// # Errors
    /// [`Error::WriteResult`], and those of the device.
    pub(super) fn record<D: Device>(&mut self, generation: &mut Generation<'_, D>, plan: &Plan) -> Result<()> {
        let Self { path, file } = self;
        for layer in 0..plan.layers() {
            let written = write_layer(file, &generation.pages_read(layer)?);
            written.map_err(|source| Error::WriteResult { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::WriteResult`].
    pub(super) fn keep(self) -> Result<()> {
        let Self { path, mut file } = self;
        let failed = |source| Error::WriteResult { path: path.clone(), source };
        file.flush().map_err(failed)?;
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}
