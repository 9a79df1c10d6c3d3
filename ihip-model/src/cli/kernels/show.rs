//! `ihip kernels show`: the CUDA text of kernels.

use clap::Args;
use ihip_dsl::emit::model::ModelKernel;
use ihip_dsl::emit::{Activation, Kernel};

use super::target::{Shape, Target, filtered};
use crate::cli::error::{Error, Result};
use crate::cli::output;
use crate::cli::pruning::Choice;

/// Prints the CUDA text of kernels
#[derive(Debug, Args)]
pub(super) struct Show {
    /// A kernel's name; or a declared pipeline by its name, a TOML file with one, or `dense` for all of its kernels
    #[arg(value_name = "KERNEL|NAME|FILE")]
    name: String,
    /// Of a pipeline's kernels, only those whose name holds this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    #[command(flatten)]
    target: Target,
}

impl Show {
    pub(super) fn run(&self) -> Result<()> {
        let shape = self.target.shape()?;
        let kernels = match Choice::named(&self.name) {
            Ok(choice) => filtered(&shape.program(choice)?, &self.filter)?,
            Err(error) if !self.name.starts_with("ihip_") => return Err(error),
            Err(_) => vec![find(&shape, &self.name)?],
        };
        for kernel in kernels {
            output::write(&kernel.text)?;
        }
        Ok(())
    }
}

/// The kernel called `name`, of any pipeline or of the model itself.
fn find(shape: &Shape, name: &str) -> Result<Kernel> {
    /// Names that a message suggests.
    const SUGGESTED: usize = 3;
    let mut names = Vec::new();
    for weights in [Activation::F32, Activation::Bf16] {
        for kernel in ModelKernel::all(weights) {
            if kernel.name(weights) == name {
                return Ok(kernel.emit(weights));
            }
            names.push(kernel.name(weights));
        }
    }
    for choice in Choice::all() {
        // A pipeline that does not fit this model has no kernels for it.
        let Ok(program) = shape.program(choice) else { continue };
        for kernel in program.kernels() {
            if kernel.name == name {
                return Ok(kernel);
            }
            names.push(kernel.name);
        }
    }
    let mut nearest: Vec<_> =
        names.into_iter().map(|known| (strsim::damerau_levenshtein(name, &known), known)).collect();
    nearest.sort();
    nearest.dedup();
    // Half of the letters may differ: what is further away was not meant.
    nearest.retain(|(distance, _)| *distance <= name.len() / 2);
    let nearest = nearest.into_iter().take(SUGGESTED).map(|(_, known)| known).collect();
    Err(Error::UnknownKernel { name: name.to_owned(), model: shape.name.clone(), nearest })
}
