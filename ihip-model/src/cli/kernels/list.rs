//! `ihip kernels list`: the kernels of a pipeline.

use clap::Args;

use super::target::Target;
use crate::cli::error::Result;
use crate::cli::output;
use crate::cli::pruning::Choice;
use crate::cli::table::{Table, grouped};

/// Lists the kernels of a pipeline for a model
///
/// Name, family, threads of a block, and the shared memory in bytes that a launch asks for besides what the kernel
/// itself declares. `check` says what the compiler makes of them.
#[derive(Debug, Args)]
pub(super) struct List {
    /// A declared pipeline by its name, a TOML file with one, or `dense`
    #[arg(value_name = "NAME|FILE")]
    name: String,
    #[command(flatten)]
    target: Target,
}

impl List {
    pub(super) fn run(&self) -> Result<()> {
        let choice = Choice::named(&self.name)?;
        let shape = self.target.shape()?;
        let program = shape.program(choice)?;
        let mut table = Table::new(["kernel", "family", "threads", "shared bytes"]);
        for kernel in program.kernels() {
            let (threads, shared) = (grouped(kernel.threads as usize), grouped(kernel.shared_bytes as usize));
            table.row([kernel.name, kernel.family.word().to_owned(), threads, shared]);
        }
        output::write(&format!("{}\n\n{table}", shape.heading(&program)))
    }
}
