//! `ihip kernels`: what pipelines become on a GPU, without one.

mod check;
mod compile;
mod explain;
mod export;
mod gallery;
mod list;
mod show;
mod target;

use clap::{Args, Subcommand};

use super::error::Result;

/// Shows what pipelines become on a GPU, without one
#[derive(Debug, Args)]
pub(super) struct Kernels {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Explain(explain::Explain),
    Check(check::Check),
    Compile(compile::Compile),
    Export(export::Export),
    Gallery(gallery::Gallery),
}

impl Kernels {
    /// Runs the command.
    ///
    /// # Errors
    /// Where what is asked for is not there, a kernel does not compile, or a file cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        match &self.command {
            Command::List(list) => list.run(),
            Command::Show(show) => show.run(),
            Command::Explain(explain) => explain.run(),
            Command::Check(check) => check.run(),
            Command::Compile(compile) => compile.run(),
            Command::Export(export) => export.run(),
            Command::Gallery(gallery) => gallery.run(),
        }
    }
}
