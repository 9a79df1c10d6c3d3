//! The command line, as a library: a crate that declares pipelines of its own gets all of it with
//! `fn main() -> ExitCode { ihip_model::cli::main() }`.
//!
//! Standard output carries results alone. Exit codes: 0 done, or the reader of the output left; 1 it failed; 2 it was
//! refused before any work; 130 interrupted.

mod arguments;
mod bench;
mod cache;
mod device;
mod error;
mod generate;
mod interrupt;
mod kernels;
mod kv;
mod masks;
mod model;
mod output;
mod pages;
mod picture;
mod pipelines;
mod progress;
mod prompt;
mod pruning;
mod score;
mod table;
mod tiers;
mod tokenize;
mod tune;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::Error;

/// Runs language models over very long texts by InfiniteHiP's pruned attention (it has nothing to do with AMD's HIP).
#[derive(Debug, Parser)]
#[command(name = "ihip", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = false)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Bench),
    Cache(cache::Cache),
    Generate(generate::Generate),
    Kernels(kernels::Kernels),
    Kv(kv::Kv),
    Pipelines(pipelines::Pipelines),
    Score(score::Score),
    Tokenize(tokenize::Tokenize),
    Tune(tune::Tune),
}

/// Parses the arguments of the process, runs the command and says what its exit code is.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output; whoever closed it does not want them.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(error::REFUSED));
        }
    };
    let outcome = match arguments.command {
        Command::Bench(command) => command.run(),
        Command::Cache(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Kernels(command) => command.run(),
        Command::Kv(command) => command.run(),
        Command::Pipelines(command) => command.run(),
        Command::Score(command) => command.run(),
        Command::Tokenize(command) => command.run(),
        Command::Tune(command) => command.run(),
    };
    outcome.map_or_else(|error| report(&error), |()| ExitCode::SUCCESS)
}

/// One sentence on standard error, if there is anything to say and anyone to hear it.
fn report(error: &Error) -> ExitCode {
    if error.is_worth_saying() {
        let _ = writeln!(io::stderr(), "error: {}", obeyed_by_no_terminal(&error.to_string()));
    }
    ExitCode::from(error.exit_code())
}

/// `text` with every control character but line breaks spelled out: a file may have any name.
fn obeyed_by_no_terminal(text: &str) -> String {
    let spelled = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(spelled).collect()
}
