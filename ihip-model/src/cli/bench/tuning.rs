//! `ihip bench tuning`: steps with tuned kernels beside the same steps with kernels as they are declared.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use ihip_dsl::{KvType, Plan};
use ihip_runtime::device::cuda::{AttentionTimer, TimedPart};
use serde::Serialize;

use super::report::{Machine, quantile, renewed};
use crate::cli::error::{Error, Result};
use crate::cli::pruning::Choice;
use crate::cli::table::{Table, grouped, seconds};
use crate::cli::{arguments, model, output};
use crate::shapes::KnownShape;

/// Times steps with tuned kernels beside the same steps with kernels as they are declared
///
/// The tuned kernels are those of a run: of the tables that `ihip tune kernels` wrote or that are shipped, or of the one
/// that IHIP_TUNING names. One sample of the declared kernels is taken before each of the tuned ones, all with a cold L2.
#[derive(Debug, Args)]
pub(in crate::cli) struct Tuning {
    /// Declared pipelines, or `dense`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "Paper3k,BoundThenExact,InfLlm")]
    pruning: Vec<String>,
    /// The models whose last layers are timed
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "llama-3.1-8b,smollm2")]
    model: Vec<String>,
    /// Tokens of the contexts
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128K,1M", value_parser = arguments::tokens)]
    context: Vec<usize>,
    /// Rows of the prefill that ends a context
    #[arg(long, value_name = "TOKENS", default_value = "8K", value_parser = arguments::tokens)]
    rows: usize,
    /// Samples of each figure of decoding; of prefill a quarter
    #[arg(long, value_name = "N", default_value = "50", value_parser = arguments::count)]
    samples: usize,
    /// The GPU, counted as the driver counts
    #[arg(long, value_name = "N", default_value = "0")]
    gpu: usize,
    /// The commit that is measured, for the record
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// Writes machine, rows with every sample, and ratios
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `docs/figures` keeps.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
}

/// Samples of one part of a request with one kind of kernels.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    part: Part,
    /// `declared` or `tuned`.
    kernels: &'static str,
    median_us: f64,
    p5_us: f64,
    p95_us: f64,
    samples: Vec<f64>,
}

/// What is timed.
#[derive(Clone, Debug, Serialize)]
struct Part {
    model: String,
    pipeline: String,
    context: usize,
    /// `decode` or `prefill`.
    phase: &'static str,
    /// While decoding: `all`, `from stage N`, `none`.
    refresh: String,
}

/// Median of the tuned kernels over that of the declared ones.
#[derive(Clone, Debug, Serialize)]
struct Ratio {
    #[serde(flatten)]
    part: Part,
    ratio: f64,
}

impl Tuning {
    /// # Errors
    /// Where a name is unknown, there is no GPU, or the file cannot be written.
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let shapes = self.model.iter().map(|name| model::shape(name)).collect::<Result<Vec<_>>>()?;
        let choices = self.pruning.iter().map(|name| Choice::named(name)).collect::<Result<Vec<_>>>()?;
        if let Some(path) = &self.json {
            output::writable(path)?;
        }
        let mut timer = AttentionTimer::new(self.gpu)?;
        let machine = Machine::of(&timer, self.commit.clone())?;
        let mut report = Report { machine, rows: Vec::new(), ratios: Vec::new() };
        for shape in shapes {
            for choice in &choices {
                let plan = choice.plan_for(shape.geometry(KvType::Bf16), shape.frequencies(), shape.layers)?;
                let plan = plan.alone(plan.layers() - 1);
                for &context in &self.context {
                    self.compare(&mut timer, &plan, shape, context, &mut report)?;
                }
            }
        }
        output::write(&table(&report))?;
        if let Some(path) = &self.json {
            let failed = |source| Error::WriteResult { path: path.clone(), source };
            let text = serde_json::to_string_pretty(&report).map_err(|error| failed(error.into()))?;
            fs::write(path, format!("{text}\n")).map_err(failed)?;
        }
        Ok(())
    }

    fn compare(
        &self,
        timer: &mut AttentionTimer,
        plan: &Plan,
        shape: &KnownShape,
        context: usize,
        report: &mut Report,
    ) -> Result<()> {
        let mut declared = timer.declared_layer(plan, context)?;
        let mut tuned = timer.layer(plan, context)?;
        let stages = plan.decode(0).stages().len();
        let decode = (0..stages).map(Some).chain([None]).map(|restart| TimedPart::Decode { restart });
        for timed in decode.chain([TimedPart::Prefill { rows: self.rows.min(context) }]) {
            let (phase, refresh, samples) = match timed {
                TimedPart::Decode { restart } => ("decode", renewed(restart), self.samples),
                TimedPart::Prefill { .. } => ("prefill", renewed(None), self.samples.div_ceil(4)),
            };
            let (model, pipeline) = (shape.word.to_owned(), plan.name().to_owned());
            let part = Part { model, pipeline, context, phase, refresh };
            let times = timer.paired([&mut declared, &mut tuned], timed, samples)?;
            let [declared, tuned] = ["declared", "tuned"];
            let rows =
                [(declared, &times[0]), (tuned, &times[1])].map(|(kernels, times)| Row::new(&part, kernels, times));
            report.ratios.push(Ratio { part, ratio: rows[1].median_us / rows[0].median_us });
            report.rows.extend(rows);
        }
        Ok(())
    }
}

impl Row {
    fn new(part: &Part, kernels: &'static str, seconds: &[f64]) -> Self {
        let samples: Vec<f64> = seconds.iter().map(|seconds| (seconds * 1e9).round() / 1e3).collect();
        let [median_us, p5_us, p95_us] = [0.5, 0.05, 0.95].map(|share| quantile(&samples, share));
        Self { part: part.clone(), kernels, median_us, p5_us, p95_us, samples }
    }
}

fn table(report: &Report) -> String {
    let mut table = Table::new(["model", "pipeline", "context", "phase", "refresh", "declared", "tuned", "ratio"]);
    for (rows, Ratio { part, ratio }) in report.rows.chunks(2).zip(&report.ratios) {
        let Part { model, pipeline, context, phase, refresh } = part.clone();
        let medians = [0, 1].map(|row| seconds(rows[row].median_us / 1e6));
        let [declared, tuned] = medians;
        let (phase, ratio) = (phase.to_owned(), format!("{ratio:.3}"));
        table.row([model, pipeline, grouped(context), phase, refresh, declared, tuned, ratio]);
    }
    table.to_string()
}
