//! `ihip kernels check`: every kernel through the compiler.

use clap::Args;
use ihip_dsl::emit::Kernel;
use ihip_runtime::jit::{Architecture, Compiler};
use rayon::prelude::*;

use super::target::{Shape, Target, architecture, filtered};
use crate::cli::error::{Error, Result};
use crate::cli::pruning::Choice;
use crate::cli::table::{Table, grouped};
use crate::cli::{output, progress};

/// Compiles kernels and says what they take; the exit code is 1 where one does not compile
///
/// Registers, stack and spills are those of a thread, in bytes where they are bytes; shared memory is that of a block,
/// with what a launch adds. Needs libnvrtc and no GPU. What was compiled before comes from the cache.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Declared pipelines by their names, TOML files with one, or `dense` [default: all that are declared, and `dense`]
    #[arg(value_name = "NAME|FILE")]
    names: Vec<String>,
    /// Only kernels whose name holds this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// An architecture, such as sm_90a; may be given several times [default: sm_80, sm_90 and sm_120]
    #[arg(long = "arch", value_name = "ARCH", value_parser = architecture)]
    architectures: Vec<Architecture>,
    #[command(flatten)]
    target: Target,
}

impl Check {
    pub(super) fn run(&self) -> Result<()> {
        let shape = self.target.shape()?;
        let tested = Architecture::TESTED;
        let architectures = if self.architectures.is_empty() { &tested[..] } else { &self.architectures };
        let kernels = architectures.iter().map(|&architecture| Ok((architecture, self.kernels(&shape, architecture)?)));
        compile(&kernels.collect::<Result<Vec<_>>>()?)
    }

    /// The kernels that are asked for, as they are for `architecture`.
    fn kernels(&self, shape: &Shape, architecture: Architecture) -> Result<Vec<Kernel>> {
        let program = |choice| shape.program_for(choice, architecture.instructions());
        let mut kernels = Vec::new();
        if self.names.is_empty() {
            for choice in Choice::all() {
                kernels.extend(program(choice)?.kernels());
            }
            kernels.retain(|kernel| kernel.name.contains(&self.filter));
        } else {
            for name in &self.names {
                kernels.extend(filtered(&program(Choice::named(name)?)?, &self.filter)?);
            }
        }
        Ok(kernels)
    }
}

fn compile(kernels: &[(Architecture, Vec<Kernel>)]) -> Result<()> {
    let all = kernels.iter().map(|(_, kernels)| kernels.len()).sum();
    let bar = progress::bar("compiling", all, "kernels");
    let mut table = Table::new(["kernel", "arch", "registers", "stack", "spill stores", "spill loads", "shared"]);
    let mut errors = Vec::new();
    for (architecture, kernels) in kernels {
        let compiler = Compiler::from_environment(*architecture)?;
        compiler.expect_architecture()?;
        let compiled: Vec<_> = kernels
            .par_iter()
            .map(|kernel| {
                let cubin = compiler.cubin(&kernel.name, &kernel.text);
                bar.inc(1);
                cubin
            })
            .collect();
        for (kernel, cubin) in kernels.iter().zip(compiled) {
            match cubin {
                Ok(cubin) => {
                    let taken = cubin.resources;
                    let bytes = [
                        taken.registers,
                        taken.stack_bytes,
                        taken.spill_store_bytes,
                        taken.spill_load_bytes,
                        taken.shared_bytes + kernel.shared_bytes,
                    ];
                    let [a, b, c, d, e] = bytes.map(|value| grouped(value as usize));
                    table.row([kernel.name.clone(), architecture.to_string(), a, b, c, d, e]);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
    }
    bar.finish_and_clear();
    output::write(&table.to_string())?;
    if errors.is_empty() {
        return Ok(());
    }
    for error in &errors {
        output::complain(error);
    }
    Err(Error::DoNotCompile { failed: errors.len(), all })
}
