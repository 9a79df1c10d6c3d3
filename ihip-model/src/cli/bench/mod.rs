//! `ihip bench`: how fast things run here.

mod attention;
mod figure;
mod kv;
pub(super) mod report;
mod tuning;

use clap::{Args, Subcommand};

use super::error::Result;

/// Measures how fast things run on this machine
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Attention(attention::Attention),
    Kv(kv::Kv),
    Tuning(tuning::Tuning),
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// Where there is no GPU, or a file cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        match &self.command {
            Command::Attention(attention) => attention.run(),
            Command::Kv(kv) => kv.run(),
            Command::Tuning(tuning) => tuning.run(),
        }
    }
}
