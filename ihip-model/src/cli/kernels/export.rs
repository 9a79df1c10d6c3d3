//! `ihip kernels export`: the gallery.

use std::path::PathBuf;

use clap::Args;

use super::gallery;
use crate::cli::error::Result;

/// Writes the kernels of Paper3k for two models, and what the compiler says of them
///
/// One file a kernel, and manifest.toml with registers, spills and shared bytes for sm_80, sm_90 and sm_120. Needs
/// libnvrtc and no GPU.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The folder to write; kernels that are there and no longer made are removed
    #[arg(long, value_name = "FOLDER", default_value = "kernels-generated")]
    out: PathBuf,
}

impl Export {
    pub(super) fn run(&self) -> Result<()> {
        gallery::write_gallery(&self.out)
    }
}
