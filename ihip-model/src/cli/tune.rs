//! `ihip tune`: finds the fastest of what kernels leave open.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use ihip_dsl::{Attention, KvType, Phases, Plan};
use ihip_runtime::device::cuda::{AttentionTimer, GpuBench};
use ihip_runtime::jit::JitError;
use ihip_runtime::tuning::{self, Choice as Chosen, Gate, Origin, Table, TrialStore, Tuned, Tuner};
use rayon::prelude::*;

use super::bench::report::Machine;
use super::error::{Error, Result};
use super::pruning::Choice;
use super::table::{NOTHING, Table as Text, grouped, seconds};
use super::{arguments, model, output};
use crate::shapes::KnownShape;

/// Cases that are drawn until rounding decides nothing in one.
const SEEDS: u64 = 4;

/// Finds the fastest of what kernels leave open
#[derive(Debug, Args)]
pub(super) struct Tune {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Kernels(Kernels),
}

impl Tune {
    /// Runs the command.
    ///
    /// # Errors
    /// Where there is no GPU, a kernel is wrong as it is declared, or a file cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        match &self.command {
            Command::Kernels(kernels) => kernels.run(),
        }
    }
}

/// Tries threads, tiles and splits of kernels on a GPU and keeps the fastest
///
/// A candidate is timed once it computes what the reference does on a small case and what the kernel as it is declared
/// does on the context, one sample of that kernel before each of its own, with a cold L2. Every trial is kept: what was
/// tried before is not tried again. Later runs on GPUs of the architecture take the fastest.
#[derive(Debug, Args)]
struct Kernels {
    /// Declared pipelines by their names, TOML files with one, or `dense`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "Paper3k")]
    pruning: Vec<String>,
    /// The models whose kernels they are
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "llama-3.1-8b")]
    model: Vec<String>,
    /// Tokens of the contexts
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128K,1M", value_parser = arguments::tokens)]
    context: Vec<usize>,
    /// Rows of the prefill step that ends a context
    #[arg(long, value_name = "TOKENS", default_value = "8K", value_parser = arguments::tokens)]
    rows: usize,
    /// The layer whose kernels they are [default: the last]
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// No new candidate is tried after so many minutes
    #[arg(long, value_name = "MINUTES", default_value = "10", value_parser = arguments::minutes)]
    minutes: Duration,
    /// Samples of each candidate of decoding; of prefill a quarter, and of the fastest three times as many
    #[arg(long, value_name = "N", default_value = "20", value_parser = arguments::count)]
    samples: usize,
    /// The GPU, counted as the driver counts
    #[arg(long, value_name = "N", default_value = "0")]
    gpu: usize,
    /// Where trials and the table of the fastest are kept [default: `tuning` in the cache of this user]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// A layer of a model under a pipeline.
struct Job {
    model: &'static KnownShape,
    plan: Plan,
    phases: Phases,
}

impl Job {
    /// A small case and what the reference makes of it.
    fn gate(&self, seed: u64) -> Gate {
        Gate::new(&self.phases, self.plan.geometry(), self.plan.frequencies(), seed)
    }
}

impl Kernels {
    fn run(&self) -> Result<()> {
        let end = Instant::now() + self.minutes;
        let jobs = self.jobs()?;
        let mut timer = AttentionTimer::new(self.gpu)?;
        let machine = Machine::of(&timer, None)?;
        let (architecture, nvrtc) = timer.compiler();
        let own = tuning::user_table(architecture).and_then(|table| Some(table.parent()?.to_owned()));
        let folder = self.folder.clone().or(own).ok_or(JitError::NoCacheFolder)?;
        let portable = architecture.portable();
        let table_path = folder.join(format!("{portable}.toml"));
        let trials = folder.join(format!("{portable}.trials.jsonl"));
        let store = TrialStore::open(&trials).map_err(|source| crate::Error::Read { path: trials, source })?;
        let mut table = if table_path.exists() {
            Table::read(&table_path).map_err(ihip_runtime::Error::from)?
        } else {
            Table { machine: described(&machine, architecture, nvrtc), choices: Vec::new() }
        };
        table.machine = described(&machine, architecture, nvrtc);
        let origin = Origin { gpu: machine.gpu.clone(), architecture, nvrtc };
        let mut tuner = Tuner::new(store, origin, self.samples);

        let mut left = jobs.len() * self.context.len();
        let mut untunable = None;
        // The reference takes its time, and a thread for each.
        let gates: Vec<Gate> = jobs.par_iter().map(|job| job.gate(0)).collect();
        for (job, gate) in jobs.iter().zip(gates) {
            for &context in &self.context {
                let deadline = tuning::share(end, left);
                left -= 1;
                let tuned = match self.tune(&mut timer, &mut tuner, job, &gate, context, deadline) {
                    Ok(tuned) => tuned,
                    // It says nothing about the other pipelines.
                    Err(error) if error.is_untunable() => {
                        output::write(&format!("{error}\n\n"))?;
                        untunable = Some(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                for kernel in &tuned {
                    // What was not tried at all says nothing.
                    if kernel.timed > 0 {
                        let Tuned { kernel, tokens, best, .. } = kernel.clone();
                        table.choose(Chosen { kernel, tokens, tuning: best });
                    }
                }
                let failed = |source| Error::WriteResult { path: table_path.clone(), source };
                table.write(&table_path).map_err(failed)?;
                output::write(&text(job, context, &tuned))?;
            }
        }
        let (trials, fastest) = (tuner.store().path().display(), table_path.display());
        output::write(&format!("trials in {trials}\nthe fastest in {fastest}\n"))?;
        untunable.map_or(Ok(()), Err)
    }

    /// Every pipeline for every model.
    fn jobs(&self) -> Result<Vec<Job>> {
        let mut pairs = Vec::new();
        for model in &self.model {
            let shape = model::shape(model)?;
            for name in &self.pruning {
                pairs.push((shape, Choice::named(name)?));
            }
        }
        let job = |(model, choice): &(&'static KnownShape, Choice)| {
            let geometry = model.geometry(KvType::Bf16);
            let plan = choice.plan_for(geometry, model.frequencies(), model.layers)?;
            let layer = self.layer.unwrap_or(plan.layers() - 1);
            if layer >= plan.layers() {
                return Err(Error::NoSuchLayer { layer, layers: plan.layers() });
            }
            let phases = match choice {
                Choice::Dense => Phases { prefill: Attention::Dense, decode: Attention::Dense },
                Choice::Pipeline(pipeline) => pipeline.layer(layer as u32).clone(),
            };
            Ok(Job { model, plan: plan.alone(layer), phases })
        };
        pairs.iter().map(job).collect()
    }

    /// Tunes the kernels of one job for one context.
    fn tune(
        &self,
        timer: &mut AttentionTimer,
        tuner: &mut Tuner,
        job: &Job,
        gate: &Gate,
        context: usize,
        deadline: Instant,
    ) -> Result<Vec<Tuned>> {
        let (mut seed, mut gate) = (0, gate.clone());
        loop {
            match GpuBench::new(timer, &job.plan, context, self.rows, &gate) {
                Ok(mut bench) => return Ok(tuner.tune(&mut bench, &job.plan, context, deadline)?),
                Err(ihip_runtime::Error::Untunable { .. }) if seed + 1 < SEEDS => {
                    seed += 1;
                    gate = job.gate(seed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn described(
    machine: &Machine,
    architecture: ihip_runtime::jit::Architecture,
    (major, minor): (u32, u32),
) -> tuning::Machine {
    tuning::Machine {
        gpu: machine.gpu.clone(),
        architecture: architecture.portable().to_string(),
        driver: machine.driver.clone(),
        cuda: format!("{major}.{minor}"),
        date: machine.date.clone(),
    }
}

fn text(job: &Job, context: usize, tuned: &[Tuned]) -> String {
    let mut table = Text::new(["kernel", "declared", "fastest", "time", "was", "ratio", "timed", "rejected", "left"]);
    for kernel in tuned {
        let known = |value: Option<String>| value.unwrap_or_else(|| NOTHING.to_owned());
        let medians = kernel.medians;
        table.row([
            kernel.kernel.clone(),
            kernel.default.to_string(),
            if kernel.best == kernel.default { "as declared".to_owned() } else { kernel.best.to_string() },
            known(medians.map(|[_, best]| seconds(best / 1e6))),
            known(medians.map(|[default, _]| seconds(default / 1e6))),
            known(medians.map(|[default, best]| format!("{:.3}", best / default))),
            kernel.timed.to_string(),
            kernel.rejected.len().to_string(),
            kernel.left.to_string(),
        ]);
    }
    format!("{} on {} at {} tokens\n\n{table}\n", job.plan.name(), job.model.name, grouped(context))
}
