//! `ihip kernels export`: kernels as files for programs without Rust.

use std::path::PathBuf;

use clap::Args;
use ihip_runtime::jit::{Architecture, Compiler};

use super::target::{Target, architecture, extent};
use crate::cli::error::Result;
use crate::cli::pruning::Choice;
use crate::cli::{arguments, progress};
use crate::export;

/// Writes the kernels of a pipeline as cubins, texts and a manifest
///
/// The manifest has entries, arguments, launches, buffers and hashes: docs/loader/load_kernels.py runs them on a GPU
/// without Rust. Needs libnvrtc and no GPU.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// A declared pipeline, or `dense`
    name: String,
    /// The folder to write, new or empty
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// An architecture, such as sm_90; may be given several times
    #[arg(long = "arch", value_name = "ARCH", default_value = "sm_90", value_parser = architecture)]
    architectures: Vec<Architecture>,
    /// Tokens that buffers and launches are laid out for, such as 131072, 128K or 1M
    #[arg(long, value_name = "TOKENS", default_value = "128K", value_parser = arguments::tokens, allow_negative_numbers = true)]
    context: usize,
    /// Rows of the largest prefill step [default: 8K, or the context where that is less]
    #[arg(long, value_name = "TOKENS", value_parser = arguments::tokens, allow_negative_numbers = true)]
    rows: Option<usize>,
    /// Also write inputs of one layer of each kind, and what the reference computes from them
    #[arg(long)]
    test_vectors: bool,
    #[command(flatten)]
    target: Target,
}

impl Export {
    pub(super) fn run(&self) -> Result<()> {
        let extent = extent(self.rows, self.context)?;
        let choice = Choice::named(&self.name)?;
        let shape = self.target.shape()?;
        let program = shape.program(choice)?;
        let mut compilers = Vec::new();
        for &architecture in &self.architectures {
            let compiler = Compiler::from_environment(architecture)?;
            compiler.expect_architecture()?;
            compilers.push(compiler);
        }
        let export = export::Export {
            program: &program,
            pipeline: choice.pipeline(),
            model: &shape.name,
            extent,
            vectors: self.test_vectors,
        };
        let bar = progress::bar("compiling", program.kernels().len() * compilers.len(), "kernels");
        export.write(&self.out, &compilers, &|_| bar.inc(1))?;
        bar.finish_and_clear();
        Ok(())
    }
}
