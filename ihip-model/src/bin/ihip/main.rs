//! The `ihip` command: everything is in the library, so that a crate with pipelines of its own gets it as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    ihip_model::cli::main()
}
