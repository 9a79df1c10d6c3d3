//! `ihip kv`: how many tokens of a request fit where, and what a share of the GPU's memory would come to.

use std::fs::File;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ihip_dsl::{Geometry, KvType};
use ihip_runtime::Device;
use ihip_runtime::kv::trace::{Replay, Trace};
use ihip_runtime::kv::{KvError, PrefillMoves};

use super::arguments;
use super::device::{DeviceArguments, Settings, Work};
use super::error::{Error, Result};
use super::interrupt;
use super::model::{self, ModelArguments, Placed, Reserve};
use super::output;
use super::pruning::{self, Pruning};
use super::table::{NOTHING, Table, bytes, grouped};
use super::tiers::Tiers;
use crate::generate::Interrupt;
use crate::stats::Percentiles;

/// Shows how many tokens fit where, and replays page traces
#[derive(Debug, Args)]
pub(super) struct Kv {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plan(PlanArguments),
    Replay(ReplayArguments),
}

/// Shows where keys and values of a request have room
#[derive(Debug, Args)]
struct PlanArguments {
    /// Tokens of the request, such as 131072, 128K or 1M
    #[arg(long, value_name = "N", value_parser = arguments::tokens, allow_negative_numbers = true)]
    tokens: usize,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    pruning: Pruning,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Replays a page trace with shares of all keys and values on the GPU
///
/// A trace has the pages that every decoding step read: `ihip generate --dump-pages FILE` records one.
#[derive(Debug, Args)]
struct ReplayArguments {
    /// The trace
    file: PathBuf,
    /// Shares to try, greater than 0 and at most 1
    #[arg(long, value_name = "SHARE", default_value = "0.5,0.25,0.1", value_delimiter = ',', value_parser = arguments::share, allow_negative_numbers = true)]
    share: Vec<f64>,
    /// Layers of the cache, those of the trace over and over [default: those of the trace]
    #[arg(long, value_name = "N", value_parser = arguments::layers, allow_negative_numbers = true)]
    layers: Option<usize>,
    /// The model whose pages it has, for their bytes
    #[arg(long, value_name = "NAME", default_value = "smollm2")]
    model: String,
    /// Type of keys and values, for the bytes of a page
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = arguments::kv_type)]
    kv_type: KvType,
}

impl Kv {
    /// Runs the command.
    ///
    /// # Errors
    /// What was refused.
    pub(super) fn run(&self) -> Result<()> {
        match &self.command {
            Command::Plan(arguments) => {
                let (pruning, interrupt) = (arguments.pruning.choose()?, interrupt::listen()?);
                arguments.device.run(PlanJob { arguments, pruning, interrupt })
            }
            Command::Replay(arguments) => arguments.run(),
        }
    }
}

/// A plan whose arguments have been checked.
struct PlanJob<'a> {
    arguments: &'a PlanArguments,
    pruning: pruning::Choice,
    interrupt: &'a Interrupt,
}

impl Work for PlanJob<'_> {
    type Output = ();

    fn run<D: Device>(self, device: &mut D, settings: Settings) -> Result<()> {
        let file = self.arguments.model.open(self.interrupt)?;
        let plan = self.pruning.plan(file.config(), settings.kv_type)?;
        let tokens = self.arguments.tokens;
        let reserve = Reserve { prompt: tokens, new: 0 };
        let Placed { tiers, chunk } = model::place(file.config(), &plan, reserve, device, settings)?;
        let moves = device.prefill_moves(&plan, tokens, chunk)?;
        output::write(&(table(&tiers, plan.layers()) + &reading(moves, tokens, chunk)))
    }
}

/// Tokens and bytes of every layer by tier.
fn table(tiers: &Tiers, layers: usize) -> String {
    let mut table = Table::new(["of a layer", "tokens on GPU", "bytes", "tokens on host", "bytes"]);
    let half = tiers.token / (2 * layers as u64);
    for (name, tokens) in [("keys", tiers.placement.keys), ("values", tiers.placement.values)] {
        let on_gpu = tokens.gpu.min(tiers.tokens);
        let size = |tokens: usize| bytes((tokens as u64 * half) as f64);
        let on_host = tiers.tokens - on_gpu;
        table.row([name.to_owned(), grouped(on_gpu), size(on_gpu), grouped(on_host), size(on_host)]);
    }
    format!("{table}\n{layers} layers; {tiers}\n")
}

/// What reading a prompt moves; nothing where all is on the GPU.
fn reading(moves: PrefillMoves, tokens: usize, chunk: usize) -> String {
    let PrefillMoves { streamed, written } = moves;
    if streamed + written == 0 {
        return String::new();
    }
    format!(
        "reading {} tokens in steps of {} moves {} to the GPU, values that queries ask for besides, and {} to the host\n",
        grouped(tokens),
        grouped(chunk),
        bytes(streamed as f64),
        bytes(written as f64)
    )
}

impl ReplayArguments {
    fn run(&self) -> Result<()> {
        let failed = |error| Error::PageTrace { path: self.file.clone(), error };
        let trace = Trace::read(&mut File::open(&self.file).map_err(|error| failed(error.into()))?).map_err(failed)?;
        let shape = model::shape(&self.model)?;
        let geometry = Geometry { page: trace.header.page, ..shape.geometry(self.kv_type) };
        let layers = self.layers.unwrap_or(trace.header.layers as usize);
        let heading = [
            "share",
            "keys",
            "values",
            "keys on GPU",
            "values on GPU",
            "promotions",
            "evictions",
            "to GPU",
            "from GPU",
            "read in place",
            "misses p50",
            "p95",
            "p99",
        ];
        let mut table = Table::new(heading);
        for share in &self.share {
            let Replay { keys, values, residence, promotions, evictions, misses } =
                trace.replay(*share, layers).map_err(|error| match error {
                    // A row of the replay is one number, whatever the model: its bytes are nobody's.
                    KvError::TooLong { least, gpu, .. } => {
                        Error::SmallShare { share: *share, least: share * least as f64 / gpu.max(1) as f64 }
                    }
                    error => ihip_runtime::Error::from(error).into(),
                })?;
            let percent = |ratio: Option<f64>| {
                ratio.map_or_else(|| NOTHING.to_owned(), |ratio| format!("{:.2} %", 100.0 * ratio))
            };
            let size = |pages: u64| bytes((pages * geometry.page_bytes() as u64) as f64);
            let missed = misses.iter().sum();
            let misses = Percentiles::of(misses.into_iter().map(|misses| misses as f64).collect()).unwrap_or_default();
            let [p50, p95, p99] = [misses.p50, misses.p95, misses.p99].map(|pages| grouped(pages as usize));
            table.row([
                share.to_string(),
                percent(keys.hit_ratio()),
                percent(values.hit_ratio()),
                grouped(residence.keys.gpu),
                grouped(residence.values.gpu),
                grouped(promotions as usize),
                grouped(evictions as usize),
                size(promotions),
                size(evictions),
                size(missed),
                p50,
                p95,
                p99,
            ]);
        }
        let steps = grouped(trace.steps.len());
        let prompt = grouped(trace.header.prompt as usize);
        let name = format!("{}, {}", shape.word, self.kv_type.word());
        output::write(&format!(
            "{table}\n{steps} steps after {prompt} tokens, {layers} layers of {name}; misses are pages a step\n"
        ))
    }
}
