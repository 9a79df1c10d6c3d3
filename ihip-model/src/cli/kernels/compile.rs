//! `ihip kernels compile`: fills the cache ahead.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ihip_dsl::KvType;
use ihip_dsl::emit::model::ModelKernel;
use ihip_dsl::emit::{Activation, Kernel, Paging, Slots};
use ihip_dsl::tuning::Tunings;
use ihip_runtime::jit::{self, Architecture, Compiler};
use ihip_runtime::tuning::Tables;
use serde::Serialize;

use super::target::{Shape, Target, architecture};
use crate::cli::error::{Error, Result};
use crate::cli::progress;
use crate::cli::pruning::Choice;
use crate::stats::Kernels;

/// Compiles what runs of pipelines will need, and keeps it
///
/// Needs libnvrtc and no GPU: a run on a GPU of the architecture then compiles nothing, and with IHIP_NO_JIT=1 never
/// tries to. The kernels are those of the pipeline, as they are tuned for the architecture, those that a cache of two tiers
/// takes besides, however its budget is divided, and those of the model itself with weights of the cache's type.
#[derive(Debug, Args)]
pub(super) struct Compile {
    /// Declared pipelines by their names, TOML files with one, or `dense` [default: all that are declared, and `dense`]
    #[arg(value_name = "NAME|FILE")]
    names: Vec<String>,
    /// An architecture, such as sm_80, or sm_90a for H100 and H200; may be given several times
    #[arg(long = "arch", value_name = "ARCH", default_value = "sm_90a", value_parser = architecture)]
    architectures: Vec<Architecture>,
    /// The folder that IHIP_CACHE names where the kernels will run [default: the cache of this user]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// For runs with --dense-path
    #[arg(long)]
    dense_path: bool,
    /// Print one line of JSON to standard error at the end: kernels compiled and found, seconds
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    target: Target,
}

/// Slots of a cache of two tiers. No text depends on how many there are: launches pass that.
const SLOTS: Slots = Slots { pages: 3, keys: 2, values: 2 };

/// What compiling took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Stats {
    kernels: Kernels,
    seconds: Seconds,
}

/// Wall-clock seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Seconds {
    /// Planning, and writing the kernels' text.
    emit: f64,
    /// Finding and opening NVRTC and the cache.
    open: f64,
    /// Compiling, or finding what was compiled before.
    compile: f64,
}

impl Compile {
    pub(super) fn run(&self) -> Result<()> {
        let mut stats = Stats { kernels: Kernels::default(), seconds: Seconds::default() };
        let start = Instant::now();
        let shape = self.target.shape()?;
        stats.seconds.emit = start.elapsed().as_secs_f64();
        for &architecture in &self.architectures {
            let start = Instant::now();
            let kernels = self.kernels(&shape, architecture)?;
            let texts: Vec<(&str, &str)> = kernels.iter().map(|kernel| (&*kernel.name, &*kernel.text)).collect();
            stats.seconds.emit += start.elapsed().as_secs_f64();

            let start = Instant::now();
            let folder = self.cache.clone().or_else(jit::cache_folder).ok_or(jit::JitError::NoCacheFolder)?;
            let compiler = Compiler::keeping(architecture, Some(jit::store(&folder)?))?;
            let compiler = compiler.watched(progress::compilation());
            compiler.expect_architecture()?;
            stats.seconds.open += start.elapsed().as_secs_f64();

            let start = Instant::now();
            compiler.cubins(&texts, &|_| ()).map_err(ihip_runtime::Error::from)?;
            stats.seconds.compile += start.elapsed().as_secs_f64();
            let compilations = compiler.compilations();
            stats.kernels.compiled += compilations.compiled;
            stats.kernels.loaded += compilations.loaded;
            let unwritten = compiler.store().map_or(0, |store| store.counts().unwritten);
            if unwritten > 0 {
                return Err(Error::NotKept { kernels: unwritten, folder });
            }
        }
        if self.stats {
            let line = serde_json::to_string(&stats).expect("plain numbers have a JSON form");
            let _ = writeln!(io::stderr(), "{line}");
        }
        Ok(())
    }

    /// Every kernel that a run on a GPU of `architecture` may need, whatever the length of its context; each text once.
    fn kernels(&self, shape: &Shape, architecture: Architecture) -> Result<Vec<Kernel>> {
        let choices = if self.names.is_empty() {
            Choice::all()
        } else {
            self.names.iter().map(|name| Choice::named(name)).collect::<Result<_>>()?
        };
        let weights = match shape.geometry.kv_type {
            KvType::F32 => Activation::F32,
            _ => Activation::Bf16,
        };
        let mut kernels: Vec<Kernel> =
            ModelKernel::all(weights).into_iter().map(|kernel| kernel.emit(weights)).collect();
        let tables = Tables::from_environment(architecture).map_err(ihip_runtime::Error::from)?;
        // At a context that was tuned every choice made there is taken, and all choices were made at one of them.
        let mut tunings: Vec<Tunings> = tables.contexts().into_iter().map(|context| tables.tunings(context)).collect();
        if tunings.is_empty() {
            tunings.push(Tunings::default());
        }
        for choice in choices {
            for tunings in &tunings {
                let program = shape.program_with(choice, architecture.instructions(), tunings.clone())?;
                let program = if self.dense_path { program.with_dense_path() } else { program };
                for levels in 0..=Paging::most_levels() {
                    let program = program.clone().keeping_probes(levels);
                    kernels.extend(program.kernels());
                    kernels.extend(Paging::new(&program, SLOTS).kernels());
                }
            }
        }
        let mut texts = BTreeSet::new();
        kernels.retain(|kernel| texts.insert(kernel.text.clone()));
        Ok(kernels)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        compile: Compile,
    }

    #[test]
    fn whatever_a_cache_of_two_tiers_launches_is_compiled_ahead() {
        let command = ["", "Paper3k", "--model", "llama-3.1-8b", "--kv-type", "e4m3", "--dense-path"];
        let Command { compile } = Command::parse_from(command);
        let shape = compile.target.shape().expect("it is known");
        let texts: BTreeSet<String> = compile
            .kernels(&shape, Architecture::SM_90)
            .expect("it fits")
            .into_iter()
            .map(|kernel| kernel.text)
            .collect();
        let choice = Choice::named("Paper3k").expect("it is declared");
        let program = shape.program_for(choice, Architecture::SM_90.instructions()).expect("it fits");
        let program = program.with_dense_path();
        for (levels, slots) in [(0, [200_000, 9_000, 5]), (1, [64, 64, 32]), (4, [7, 3, 2])] {
            let [pages, keys, values] = slots;
            let program = program.clone().keeping_probes(levels);
            let paging = Paging::new(&program, Slots { pages, keys, values });
            for kernel in program.kernels().into_iter().chain(paging.kernels()) {
                assert!(texts.contains(&kernel.text), "{levels} levels: {}", kernel.name);
            }
        }
    }
}
