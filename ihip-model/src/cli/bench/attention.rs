//! `ihip bench attention`: one layer's attention on a GPU, beside what the GPU does at best.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ihip_dsl::cost::{Part, StepExtent, renewed_steps};
use ihip_dsl::{KvType, LayerPlan, Plan};
use ihip_runtime::device::cuda::{AttentionTimer, TimedLayer};

use super::figure;
use super::report::{Ceilings, Machine, Report, Row, quantile, renewed};
use crate::cli::error::{Error, Result};
use crate::cli::pruning::Choice;
use crate::cli::table::{NOTHING, Table, bytes, grouped, seconds};
use crate::cli::{arguments, model, output};
use crate::shapes::KnownShape;

/// Times one layer's attention on a GPU
///
/// Ceilings first: copy and read bandwidth, and a product of bf16 matrices. Then every pipeline at every context, over
/// random keys and values: decoding as a replayed graph, for every stage from which masks can be renewed, and the mean
/// over the refresh intervals; prefill of the last rows. Every sample begins with a cold L2.
#[derive(Debug, Args)]
pub(in crate::cli) struct Attention {
    /// Declared pipelines by their names, TOML files with one, or `dense`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "dense,Paper3k")]
    pruning: Vec<String>,
    /// Tokens of the contexts
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128K,1M", value_parser = arguments::tokens)]
    context: Vec<usize>,
    /// What is timed
    #[arg(long, value_delimiter = ',', default_value = "decode,prefill")]
    phase: Vec<Phase>,
    /// Rows of the prefill that ends a context
    #[arg(long, value_name = "TOKENS", default_value = "32K", value_parser = arguments::tokens)]
    rows: usize,
    /// Requests that decode at a time, in branches of one graph: besides one request, and the first context alone
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = arguments::count)]
    batch: Vec<usize>,
    /// Steps between two renewals of each stage, for the mean [default: those that the pipeline declares]
    #[arg(long, value_name = "STEPS", value_delimiter = ',', value_parser = arguments::count)]
    refresh: Option<Vec<usize>>,
    /// Samples of each figure; at most a tenth as many of what takes longer than 10 ms
    #[arg(long, value_name = "N", default_value = "50", value_parser = arguments::count)]
    samples: usize,
    /// The layer of the pipeline that is timed [default: the last]
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// The model whose layer it is
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b")]
    model: String,
    /// Element type of the key-value cache
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = arguments::kv_type)]
    kv_type: KvType,
    /// Times every kernel of a step on its own as well
    #[arg(long)]
    kernels: bool,
    /// The GPU, counted as the driver counts
    #[arg(long, value_name = "N", default_value = "0")]
    gpu: usize,
    /// A list of contexts, phases and intervals that is compared from machine to machine
    #[arg(long, value_name = "NAME")]
    suite: Option<Suite>,
    /// Rows that another program measured in the same session, to be kept with these
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// The commit that is measured, for the record
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// Writes machine, ceilings, and rows with every sample
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws time against context
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// One token
    Decode,
    /// Many rows
    Prefill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Decoding at 128K, 1M and 3M, prefill of 32K rows of 32K, 128K and 1M
    Headline,
}

/// Beyond this many seconds a sample is long.
const LONG: f64 = 10e-3;
/// Operations beyond which dense prefill is left out of a suite: minutes of the GPU.
const MOST_OPERATIONS: f64 = 1e14;

impl Attention {
    /// # Errors
    /// Where a pipeline is unknown, there is no GPU, or a file cannot be written.
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let shape = model::shape(&self.model)?;
        let plans = self.pruning.iter().map(|name| self.plan(name, shape)).collect::<Result<Vec<_>>>()?;
        plans.iter().try_for_each(|plan| self.check_intervals(plan))?;
        let peers = self.peers.as_deref().map(read_rows).transpose()?.unwrap_or_default();
        [&self.svg, &self.json].into_iter().flatten().try_for_each(|path| output::writable(path))?;
        let mut timer = AttentionTimer::new(self.gpu)?;
        let machine = Machine::of(&timer, self.commit.clone())?;
        output::write(&format!("{}, driver {}, CUDA {}\n", machine.gpu, machine.driver, machine.cuda))?;
        let ceilings = ceilings(&mut timer)?;
        output::write(&format!(
            "copy {:.2} TB/s, read {:.2} TB/s, bf16 product {:.0} TFLOP/s, empty graph {:.1} µs\n\n",
            ceilings.copy / 1e12,
            ceilings.read / 1e12,
            ceilings.product / 1e12,
            ceilings.launch_us
        ))?;
        let mut rows = Vec::new();
        for context in self.contexts() {
            for plan in &plans {
                self.pipeline(&mut timer, plan, context, &mut rows)?;
                self.batches(&mut timer, plan, context, &mut rows)?;
            }
        }
        if self.kv_type != KvType::Bf16 {
            for row in &mut rows {
                row.method = format!("{}, {}", row.method, self.kv_type.word());
            }
        }
        rows.extend(peers);
        output::write(&table(&rows, &ceilings))?;
        if let Some(path) = &self.svg {
            write(path, &figure::svg(&rows))?;
        }
        if let Some(path) = &self.json {
            let report = Report { machine, ceilings, rows };
            let failed = |error: serde_json::Error| Error::WriteResult { path: path.clone(), source: error.into() };
            let text = serde_json::to_string_pretty(&report).map_err(failed)?;
            write(path, &format!("{text}\n"))?;
        }
        Ok(())
    }

    fn plan(&self, name: &str, shape: &KnownShape) -> Result<Plan> {
        let plan = Choice::named(name)?.plan_for(shape.geometry(self.kv_type), shape.frequencies(), shape.layers)?;
        let layer = self.layer.unwrap_or(plan.layers() - 1);
        if layer >= plan.layers() {
            return Err(Error::NoSuchLayer { layer, layers: plan.layers() });
        }
        Ok(plan.alone(layer))
    }

    /// Makes sure that each stage has an interval where any are given.
    fn check_intervals(&self, plan: &Plan) -> Result<()> {
        let stages = plan.decode(0).stages().len();
        match &self.refresh {
            Some(intervals) if stages > 0 && intervals.len() != stages => {
                Err(Error::Intervals { given: intervals.len(), pipeline: plan.name().to_owned(), stages })
            }
            _ => Ok(()),
        }
    }

    fn contexts(&self) -> Vec<usize> {
        match self.suite {
            Some(Suite::Headline) => vec![32 << 10, 128 << 10, 1 << 20, 3 << 20],
            None => self.context.clone(),
        }
    }

    fn times(&self, phase: Phase, context: usize) -> bool {
        match (self.suite, phase) {
            (Some(Suite::Headline), Phase::Decode) => context > 32 << 10,
            (Some(Suite::Headline), Phase::Prefill) => context <= 1 << 20,
            (None, phase) => self.phase.contains(&phase),
        }
    }

    fn pipeline(&self, timer: &mut AttentionTimer, plan: &Plan, context: usize, rows: &mut Vec<Row>) -> Result<()> {
        let mut layer = timer.layer(plan, context)?;
        if self.times(Phase::Decode, context) {
            self.decode(timer, &mut layer, plan, context, rows)?;
        }
        if self.times(Phase::Prefill, context) {
            self.prefill(timer, &mut layer, plan, context, rows)?;
            drop(layer);
            if let Some(mut layer) = timer.dense_path_layer(plan, context, self.rows.min(context))? {
                let first = rows.len();
                self.prefill(timer, &mut layer, plan, context, rows)?;
                for row in &mut rows[first..] {
                    "ihip, dense path".clone_into(&mut row.method);
                    // How much is read and multiplied hangs on how far the path goes.
                    (row.bytes, row.operations) = (0.0, 0.0);
                }
            }
        }
        Ok(())
    }

    /// Decoding steps of several requests at a time.
    fn batches(&self, timer: &mut AttentionTimer, plan: &Plan, context: usize, rows: &mut Vec<Row>) -> Result<()> {
        if self.batch.is_empty() || self.contexts().first() != Some(&context) {
            return Ok(());
        }
        let kind = plan.decode(0);
        let reads = kind.reads(plan.geometry(), StepExtent { tokens: context, rows: 1 });
        let stages = kind.stages().len();
        let mut layers = Vec::new();
        let mut batches = self.batch.clone();
        batches.sort_unstable();
        for batch in batches {
            while layers.len() < batch {
                layers.push(timer.layer(plan, context)?);
            }
            for (restart, refresh) in [(Some(0), "all"), (None, "none")] {
                if restart.is_some() && stages == 0 {
                    continue;
                }
                let samples = timer.decode_together(&mut layers[..batch], restart, self.samples)?;
                let mut row = Row::new("decode", context, refresh.to_owned(), plan.name(), &samples);
                row.method = format!("{}, batch {batch}", row.method);
                let taken = reads.iter().filter(|reads| restart.is_some() || reads.part == Part::Attend);
                row.bytes = batch as f64 * taken.map(ihip_dsl::cost::Reads::distinct_bytes).sum::<f64>();
                row.operations = batch as f64 * operations(plan, context, 1);
                rows.push(row);
            }
        }
        Ok(())
    }

    fn decode(
        &self,
        timer: &mut AttentionTimer,
        layer: &mut TimedLayer,
        plan: &Plan,
        context: usize,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        let kind = plan.decode(0);
        let reads = kind.reads(plan.geometry(), StepExtent { tokens: context, rows: 1 });
        let stages = kind.stages();
        // Step 0 renews everything; the last entry is a step that reuses the list.
        let mut steps = Vec::new();
        for stage in 0..=stages.len() {
            let restart = (stage < stages.len()).then_some(stage);
            let taken = reads.iter().filter(|reads| match reads.part {
                Part::Scan { stage: scanned } => restart.is_some_and(|restart| scanned >= restart),
                Part::Attend => true,
            });
            let moved: f64 = taken.map(ihip_dsl::cost::Reads::distinct_bytes).sum();
            let samples = timer.decode(layer, restart, self.samples)?;
            let mut row = Row::new("decode", context, renewed(restart), plan.name(), &samples);
            row.bytes = moved;
            row.operations = operations(plan, context, 1);
            if self.kernels {
                let times = timer.decode_kernels(layer, restart, self.samples)?;
                output::write(&kernels(&row, &times))?;
            }
            rows.push(row);
            steps.push((samples, moved));
        }
        if !stages.is_empty() {
            let intervals: Vec<usize> = stages.iter().map(|stage| stage.refresh).collect();
            rows.push(mean(self.refresh.as_ref().unwrap_or(&intervals), &steps, plan, context));
        }
        Ok(())
    }

    fn prefill(
        &self,
        timer: &mut AttentionTimer,
        layer: &mut TimedLayer,
        plan: &Plan,
        context: usize,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        let queries = self.rows.min(context);
        let operations = operations(plan, context, queries);
        if self.suite.is_some() && *plan.prefill(0) == LayerPlan::Dense && operations > MOST_OPERATIONS {
            return Ok(());
        }
        let mut samples = timer.prefill(layer, queries, 1)?;
        if samples[0] < LONG {
            samples = timer.prefill(layer, queries, self.samples)?;
        } else {
            let more = (self.samples / 10).saturating_sub(1);
            samples.extend(timer.prefill(layer, queries, more)?);
        }
        let reads = plan.prefill(0).reads(plan.geometry(), StepExtent { tokens: context, rows: queries });
        let mut row = Row::new("prefill", context, renewed(None), plan.name(), &samples);
        row.bytes = reads.iter().map(ihip_dsl::cost::Reads::distinct_bytes).sum();
        row.operations = operations;
        if self.kernels {
            let samples = (self.samples / 10).max(1);
            let times = timer.prefill_kernels(layer, samples)?;
            output::write(&kernels(&row, &times))?;
        }
        rows.push(row);
        Ok(())
    }
}

/// Multiplications and additions of attention over the keys that the last `rows` of `context` queries see.
fn operations(plan: &Plan, context: usize, rows: usize) -> f64 {
    let geometry = plan.geometry();
    let keys = |kind: &LayerPlan| -> f64 {
        let budget = match kind {
            LayerPlan::Dense => usize::MAX,
            LayerPlan::Pruned(layer) => layer.budget(),
        };
        (context - rows..context).map(|position| budget.min(position + 1) as f64).sum()
    };
    let kind = if rows == 1 { plan.decode(0) } else { plan.prefill(0) };
    4.0 * f64::from(geometry.query_heads * geometry.head_dim) * keys(kind)
}

/// The mean of all steps: sample for sample, each kind of step as often as it comes. `steps` are those that renew from each
/// stage, and one that renews nothing.
fn mean(intervals: &[usize], steps: &[(Vec<f64>, f64)], plan: &Plan, context: usize) -> Row {
    let shares = shares(intervals);
    let weighted = |value: &dyn Fn(usize) -> f64| (0..steps.len()).map(|index| shares[index] * value(index)).sum();
    let count = steps.iter().map(|(samples, _)| samples.len()).min().unwrap_or(0);
    let samples: Vec<f64> = (0..count).map(|sample| weighted(&|index| steps[index].0[sample])).collect();
    let words: Vec<String> = intervals.iter().map(usize::to_string).collect();
    let mut row = Row::new("decode", context, words.join(","), plan.name(), &samples);
    row.bytes = weighted(&|index| steps[index].1);
    row.operations = operations(plan, context, 1);
    row
}

/// Shares of steps that renew from each stage on, the first whose interval divides them, and of those that renew nothing.
fn shares(intervals: &[usize]) -> Vec<f64> {
    let renewed = |stages: usize| renewed_steps(intervals[..stages].iter().copied());
    let from = (0..intervals.len()).map(|stage| renewed(stage + 1) - renewed(stage));
    from.chain([1.0 - renewed(intervals.len())]).collect()
}

fn ceilings(timer: &mut AttentionTimer) -> Result<Ceilings> {
    let measured = timer.ceilings()?;
    let moved = measured.bytes() as f64;
    Ok(Ceilings {
        copy: 2.0 * moved / quantile(&measured.copy, 0.5),
        read: moved / quantile(&measured.read, 0.5),
        product: measured.operations() / quantile(&measured.product, 0.5),
        launch_us: quantile(&measured.launch, 0.5) * 1e6,
    })
}

fn table(rows: &[Row], ceilings: &Ceilings) -> String {
    let heading = [
        "phase",
        "context",
        "pipeline",
        "refresh",
        "method",
        "median",
        "p5",
        "p95",
        "bytes",
        "TB/s",
        "TFLOP/s",
        "of ceiling",
    ];
    let mut table = Table::new(heading);
    for row in rows {
        let time = row.median_us / 1e6;
        let (bandwidth, rate) = (row.bytes / time, row.operations / time);
        // Whichever of the two limits leaves less room.
        let share = (bandwidth / ceilings.read).max(rate / ceilings.product);
        let known = |value: f64, text: String| if value > 0.0 { text } else { NOTHING.to_owned() };
        table.row([
            row.phase.clone(),
            grouped(row.context),
            row.pipeline.clone(),
            row.refresh.clone(),
            row.method.clone(),
            seconds(time),
            seconds(row.p5_us / 1e6),
            seconds(row.p95_us / 1e6),
            known(row.bytes, bytes(row.bytes)),
            known(row.bytes, format!("{:.2}", bandwidth / 1e12)),
            known(row.operations, format!("{:.1}", rate / 1e12)),
            known(share, format!("{:.0} %", 100.0 * share)),
        ]);
    }
    table.to_string()
}

fn kernels(row: &Row, times: &[(String, Vec<f64>)]) -> String {
    let mut table = Table::new(["kernel", "median", "p5", "p95"]);
    for (name, samples) in times {
        let at = |share| seconds(quantile(samples, share));
        table.row([name.clone(), at(0.5), at(0.05), at(0.95)]);
    }
    format!("{} {} at {}, refresh {}\n\n{table}\n", row.phase, row.pipeline, grouped(row.context), row.refresh)
}

/// The rows of a file that has `rows` as ours have them.
fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let failed = |source| crate::Error::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    Ok(serde_json::from_str(&text).map_err(|error| failed(error.into()))?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::WriteResult { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_shared_out_among_the_stages_that_they_renew_from() {
        assert_eq!(shares(&[16, 8, 4]), [1.0 / 16.0, 1.0 / 16.0, 1.0 / 8.0, 3.0 / 4.0]);
        // Whatever the period: 4,294,967,296 steps, and more than can be counted.
        assert_eq!(shares(&[1 << 32, 1]), [1.0 / f64::from(1 << 16) / f64::from(1 << 16), 1.0 - 0.5_f64.powi(32), 0.0]);
        let rare = shares(&[usize::MAX, usize::MAX - 1, usize::MAX - 2]);
        assert!((rare.iter().sum::<f64>() - 1.0).abs() < 1e-12 && rare[3] > 0.999, "{rare:?}");
    }
}
