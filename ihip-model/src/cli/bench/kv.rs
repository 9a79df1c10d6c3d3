//! `ihip bench kv`: decoding steps of a request whose keys and values are larger than the GPU.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use ihip_dsl::{KvType, LayerPlan, Plan};
use ihip_runtime::Device;
use ihip_runtime::device::cuda::{AttentionTimer, GRAIN, TimedRequest};
use ihip_runtime::device::host_available_bytes;
use ihip_runtime::kv::budget::most;
use ihip_runtime::kv::trace::Trace;
use ihip_runtime::kv::{Budget, Traffic};
use serde::Serialize;

use super::report::{Machine, quantile};
use crate::cli::arguments::MOST_TOKENS;
use crate::cli::error::{Error, Result};
use crate::cli::pruning::Choice;
use crate::cli::table::{NOTHING, Table, grouped};
use crate::cli::tiers::most_of;
use crate::cli::{arguments, model, output, progress};
use crate::stats::Percentiles;

/// Times decoding steps of a request of which the GPU holds a part
///
/// Attention and cache of all layers, recorded as graphs as a request replays them, over random keys and values. With the
/// page trace of a text, every step attends to the pages that the text's step attended to; its scans run on their own
/// data. First come two periods of the refresh intervals, then the steps that are timed, each with a cold L2.
#[derive(Debug, Args)]
pub(in crate::cli) struct Kv {
    /// A declared pipeline by its name, a TOML file with one, or `dense`
    #[arg(long, value_name = "NAME|FILE", default_value = "Paper3kFlash")]
    pruning: String,
    /// Tokens of the contexts
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "1M", value_parser = arguments::tokens)]
    context: Vec<usize>,
    /// Types of keys and values: one, or one for each context
    #[arg(long, value_name = "TYPES", value_delimiter = ',', default_value = "e4m3", value_parser = arguments::kv_type)]
    kv_type: Vec<KvType>,
    /// Memory of the GPU for keys and values
    #[arg(long, value_name = "BYTES", default_value = "8GiB", value_parser = arguments::bytes)]
    gpu_kv: u64,
    /// Memory of the host for the others [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = arguments::bytes)]
    host_kv: Option<u64>,
    /// A page trace that `ihip generate --dump-pages` wrote [default: steps attend to what their scans find]
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Steps that are timed, at least a period of the refresh intervals
    #[arg(long, value_name = "N", default_value = "192", value_parser = arguments::count)]
    steps: usize,
    /// Memory of a GPU for which it is said how many tokens fit [default: what this GPU has free]
    #[arg(long, value_name = "BYTES", value_parser = arguments::bytes)]
    card: Option<u64>,
    /// How much of that is left to weights
    #[arg(long, value_name = "BYTES", default_value = "16GiB", value_parser = arguments::bytes)]
    weights: u64,
    /// The model whose layers they are
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b")]
    model: String,
    /// The GPU, counted as the driver counts
    #[arg(long, value_name = "N", default_value = "0")]
    gpu: usize,
    /// The commit that is measured, for the record
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// Writes machine, trace, and rows with every sample
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Samples of the gather.
const GATHERS: usize = 20;

/// Longest period of refresh intervals, in steps: three of them are run, minutes of a large model.
const MOST_PERIOD: usize = 1 << 14;

/// What is lost of a layer's share of the GPU: keys and values have whole pieces of it.
const ROUNDED: u64 = 2 * GRAIN as u64;

/// What `docs/figures` keeps.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    model: &'static str,
    pipeline: String,
    /// The file of the page trace.
    trace: Option<String>,
    rows: Vec<Row>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    what: &'static str,
    /// Tokens of the request.
    context: usize,
    kv_type: &'static str,
    /// Bytes of the GPU for keys and values.
    gpu_budget: u64,
    value: f64,
    unit: &'static str,
    /// What `value` is made of, in its unit where that is not `ratio`; times in milliseconds. One a step, or a launch.
    samples: Vec<f64>,
}

impl Kv {
    /// # Errors
    /// Where a name is unknown, types and contexts do not pair, the trace cannot be used, there is no GPU, a request does
    /// not fit, the period of refresh intervals is too long, or the file cannot be written.
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let shape = model::shape(&self.model)?;
        let choice = Choice::named(&self.pruning)?;
        let requests = self.requests()?;
        let plan = |kv_type| -> Result<Arc<Plan>> {
            Ok(Arc::new(choice.plan_for(shape.geometry(kv_type), shape.frequencies(), shape.layers)?))
        };
        let any = plan(KvType::Bf16)?;
        let period = period(&any)?;
        let steps = self.steps.max(period);
        let trace = self.read_trace(untimed_steps(period) + steps)?;
        if let Some(path) = &self.json {
            output::writable(path)?;
        }

        let mut timer = AttentionTimer::new(self.gpu)?;
        let machine = Machine::of(&timer, self.commit.clone())?;
        output::write(&format!("{}, driver {}, CUDA {}\n\n", machine.gpu, machine.driver, machine.cuda))?;
        let file = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let trace_file = self.trace.as_ref().map(file);
        let pipeline = any.name().to_owned();
        let mut report = Report { machine, model: shape.word, pipeline, trace: trace_file, rows: Vec::new() };
        // Before anything of a request is allocated.
        let card = self.card.or(timer.device().available_bytes()?).unwrap_or(0).saturating_sub(self.weights);
        let mut types: Vec<KvType> = requests.iter().map(|(_, kv_type)| *kv_type).collect();
        types.dedup();
        for kv_type in types {
            let plan = plan(kv_type)?;
            report.rows.push(self.fit(&mut timer, &plan, card));
        }
        for (context, kv_type) in requests {
            let rows = self.time(&mut timer, &plan(kv_type)?, [context, period, steps], trace.as_ref())?;
            report.rows.extend(rows);
            // What is measured is kept where a later request does not fit.
            self.keep(&report)?;
        }
        output::write(&table(&report.rows))
    }

    fn keep(&self, report: &Report) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let failed = |source| Error::WriteResult { path: path.clone(), source };
        let text = serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))?;
        fs::write(path, format!("{text}\n")).map_err(failed)
    }

    /// Each context with the type of its keys and values.
    fn requests(&self) -> Result<Vec<(usize, KvType)>> {
        let (contexts, types) = (self.context.len(), self.kv_type.len());
        if types != 1 && types != contexts {
            return Err(Error::Unpaired { types, contexts });
        }
        Ok(self.context.iter().copied().zip(self.kv_type.iter().copied().cycle()).collect())
    }

    /// The trace, with as many steps as are `needed`.
    fn read_trace(&self, needed: usize) -> Result<Option<Trace>> {
        let Some(path) = &self.trace else { return Ok(None) };
        let failed = |error| Error::PageTrace { path: path.clone(), error };
        let trace = Trace::read(&mut File::open(path).map_err(|error| failed(error.into()))?).map_err(failed)?;
        let steps = trace.steps.len();
        if steps < needed {
            return Err(Error::ShortTrace { path: path.clone(), steps, needed });
        }
        Ok(Some(trace))
    }

    fn host(&self, needed: u64) -> u64 {
        self.host_kv.unwrap_or_else(|| most_of(host_available_bytes(), needed))
    }

    /// How many tokens fit where `card` bytes of the GPU are for keys, values and all that goes with them.
    fn fit(&self, timer: &mut AttentionTimer, plan: &Plan, card: u64) -> Row {
        let host = self.host(u64::MAX);
        let tokens = most_tokens(timer.device(), plan, Budget { gpu: card, host });
        Row {
            what: "tokens that fit",
            context: tokens,
            kv_type: plan.geometry().kv_type.word(),
            gpu_budget: card,
            value: tokens as f64,
            unit: "tokens",
            samples: Vec::new(),
        }
    }

    fn time(
        &self,
        timer: &mut AttentionTimer,
        plan: &Arc<Plan>,
        [context, period, steps]: [usize; 3],
        trace: Option<&Trace>,
    ) -> Result<Vec<Row>> {
        let untimed = untimed_steps(period);
        let room = context + untimed + steps;
        let budget = Budget { gpu: self.gpu_kv, host: self.host(timer.device().kv_bytes(plan, room)) };
        let mut request = timer.request(plan, [context, room - context], budget, trace.is_some())?;
        let mut milliseconds = Vec::with_capacity(steps);
        let mut did: Vec<Traffic> = Vec::with_capacity(steps);
        let bar = progress::bar("decoding", untimed + steps, "steps");
        for step in 0..untimed + steps {
            if let Some(trace) = trace {
                timer.give(&request, &lists(trace, step, plan, context))?;
            }
            let before = timer.traffic(&request)?;
            let seconds = timer.step(&mut request)?;
            if step >= untimed {
                // A nanosecond is less than events tell apart.
                milliseconds.push((seconds * 1e9).round() / 1e6);
                did.push(timer.traffic(&request)?.since(&before));
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let gathered = timer.gather(&request, GATHERS)?;
        drop::<TimedRequest>(request);
        let row = |Figure { what, unit, value, samples }| Row {
            what,
            context,
            kv_type: plan.geometry().kv_type.word(),
            gpu_budget: self.gpu_kv,
            value,
            unit,
            samples,
        };
        Ok(figures(&milliseconds, &did, &gathered).into_iter().map(row).collect())
    }
}

/// The period of the refresh intervals.
///
/// # Errors
/// [`Error::LongPeriod`].
fn period(plan: &Plan) -> Result<usize> {
    match plan.refresh_period() {
        Some(period) if period <= MOST_PERIOD as u128 => Ok(period as usize),
        _ => {
            let intervals = plan.refresh_intervals().into_iter().collect();
            Err(Error::LongPeriod { pipeline: plan.name().to_owned(), intervals, most: MOST_PERIOD })
        }
    }
}

/// Steps of a request that are not timed: in a first period of the refresh intervals the graphs of all patterns are recorded, in
/// a second one the pages come that are read over and over.
const fn untimed_steps(period: usize) -> usize {
    2 * period
}

/// The block list of every layer in a step.
fn lists(trace: &Trace, step: usize, plan: &Plan, context: usize) -> Vec<Vec<i32>> {
    let list = |layer| match plan.decode(layer) {
        LayerPlan::Pruned(pruned) if !pruned.stages.is_empty() => trace.listed(step, layer, pruned, context),
        LayerPlan::Pruned(_) | LayerPlan::Dense => Vec::new(),
    };
    (0..plan.layers()).map(list).collect()
}

/// What something came to, and what it is made of.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    what: &'static str,
    unit: &'static str,
    value: f64,
    samples: Vec<f64>,
}

/// What a request's steps come to, and the rates of gathers from what its host has.
fn figures(milliseconds: &[f64], did: &[Traffic], gathered: &[f64]) -> Vec<Figure> {
    let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len() as f64;
    let Percentiles { p50, p95, p99 } = Percentiles::of(milliseconds.to_vec()).unwrap_or_default();
    let times = [
        ("decode step, mean", "ms", mean(milliseconds)),
        ("decode step, p50", "ms", p50),
        ("decode step, p95", "ms", p95),
        ("decode step, p99", "ms", p99),
        ("decode step, p99 over p50", "ratio", p99 / p50),
    ];
    let times =
        times.into_iter().map(|(what, unit, value)| Figure { what, unit, value, samples: milliseconds.to_vec() });
    let mut figures: Vec<Figure> = times.collect();
    let hits: Vec<f64> = did.iter().filter_map(|did| did.attend.hit_ratio()).collect();
    if !hits.is_empty() {
        let what = "hit ratio of the attention, mean";
        figures.push(Figure { what, unit: "share", value: mean(&hits), samples: hits });
    }
    let bytes = [
        ("read in place by the attention a step, mean", did.iter().map(|did| did.missed_bytes as f64).collect()),
        ("brought to the GPU a step, mean", did.iter().map(|did| did.promoted_bytes as f64).collect()),
        ("taken from the GPU a step, mean", did.iter().map(|did| did.evicted_bytes as f64).collect::<Vec<_>>()),
    ];
    for (what, samples) in bytes {
        figures.push(Figure { what, unit: "bytes", value: mean(&samples), samples });
    }
    if !gathered.is_empty() {
        let samples: Vec<f64> = gathered.iter().map(|rate| (rate / 1e6).round() / 1e3).collect();
        let what = "gather of cold rows, median";
        figures.push(Figure { what, unit: "GB/s", value: quantile(&samples, 0.5), samples });
    }
    figures
}

/// Most tokens of a request that fits `room`: the host's for keys and values alone, the GPU's for all that the request takes.
fn most_tokens<D: Device>(device: &mut D, plan: &Plan, room: Budget) -> usize {
    most(MOST_TOKENS, |tokens| fits(device, plan, tokens, room))
}

/// With no more of it on the GPU than the host has no room for: keys that are kept twice are kept where there is room.
fn fits<D: Device>(device: &mut D, plan: &Plan, tokens: usize, room: Budget) -> bool {
    let beyond = device.kv_bytes(plan, tokens).saturating_sub(room.host);
    device.limit_kv(Budget { gpu: beyond + plan.layers() as u64 * ROUNDED, host: room.host }, 0);
    device.placement(plan, tokens).is_ok() && device.cache_bytes(plan, tokens) <= room.gpu
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(["what", "tokens", "type", "GPU budget", "value", "unit", "samples"]);
    for row in rows {
        let value = match row.unit {
            "bytes" | "tokens" => grouped(row.value as usize),
            _ => format!("{:.3}", row.value),
        };
        let samples = if row.samples.is_empty() { NOTHING.to_owned() } else { row.samples.len().to_string() };
        let budget = format!("{:.1} GiB", row.gpu_budget as f64 / f64::from(1 << 30));
        let [what, kv_type, unit] = [row.what, row.kv_type, row.unit].map(str::to_owned);
        table.row([what, grouped(row.context), kv_type, budget, value, unit, samples]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use ihip_runtime::kv::Reads;

    use super::*;
    use crate::shapes::KnownShape;

    #[test]
    fn figures_are_made_of_the_samples_beside_them() {
        let milliseconds: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let step =
            |hits, misses| Traffic { attend: Reads { hits, misses }, missed_bytes: 10 * misses, ..Traffic::default() };
        let figures = figures(&milliseconds, &[step(3, 1), step(1, 1)], &[50e9, 40e9, 45e9]);
        let value = |what: &str| figures.iter().find(|figure| figure.what == what).map(|figure| figure.value);
        assert_eq!(value("decode step, mean"), Some(100.5));
        assert_eq!(value("decode step, p50"), Some(100.0));
        assert_eq!(value("decode step, p99 over p50"), Some(1.98));
        assert_eq!(value("hit ratio of the attention, mean"), Some(0.625));
        assert_eq!(value("read in place by the attention a step, mean"), Some(10.0));
        assert_eq!(value("gather of cold rows, median"), Some(45.0));
    }

    #[test]
    fn two_periods_of_the_intervals_are_not_timed() {
        let shape = KnownShape::named("llama-3.1-8b").expect("it is known");
        let plan = |name| {
            let choice = Choice::named(name).expect("it is declared");
            choice.plan_for(shape.geometry(KvType::Bf16), shape.frequencies(), shape.layers).expect("it fits")
        };
        assert_eq!(
            ["Paper3kFlash", "Paper3k", "dense"].map(|name| untimed_steps(period(&plan(name)).expect("it is short"))),
            [192, 32, 2]
        );
    }
}
