//! `ihip kernels explain`: what a plan reads and takes, as tables.

use std::fmt::Write;

use clap::Args;
use ihip_dsl::cost::{Part, Reads, StepExtent};
use ihip_dsl::emit::{DensePath, Extent, Program, Storage};
use ihip_dsl::{Geometry, LayerPlan};
use ihip_runtime::jit::{Architecture, Compiler};

use super::target::{Target, architecture, extent};
use crate::cli::error::Result;
use crate::cli::pruning::Choice;
use crate::cli::table::{NOTHING, Table, bytes, grouped, ranges, seconds};
use crate::cli::{arguments, output};

/// Explains what a pipeline reads and takes at a context
///
/// For each distinct kind of layer and each phase: chunks, keys, bytes, and the least time that reading them takes. Then
/// the buffers, and what each kernel takes of a multiprocessor. docs/src/command-line.md has the rules of the counts.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// A declared pipeline, or `dense`
    name: String,
    /// Tokens of the context, such as 131072, 128K or 1M
    #[arg(long, value_name = "TOKENS", value_parser = arguments::tokens, allow_negative_numbers = true)]
    context: usize,
    /// Rows of the prefill step that ends the context [default: 8K, or the context where that is less]
    #[arg(long, value_name = "TOKENS", value_parser = arguments::tokens, allow_negative_numbers = true)]
    rows: Option<usize>,
    /// What memory delivers; the default was measured on an H100
    #[arg(long, value_name = "RATE", default_value = "3.05TB/s", value_parser = arguments::bandwidth)]
    bandwidth: f64,
    /// The architecture that kernels are compiled for
    #[arg(long = "arch", value_name = "ARCH", default_value = "sm_90", value_parser = architecture)]
    architecture: Architecture,
    /// Leaves out what only the compiler knows: needs no libnvrtc
    #[arg(long)]
    no_compile: bool,
    #[command(flatten)]
    target: Target,
}

impl Explain {
    pub(super) fn run(&self) -> Result<()> {
        let extent = extent(self.rows, self.context)?;
        let choice = Choice::named(&self.name)?;
        let shape = self.target.shape()?;
        let program = shape.program_for(choice, self.architecture.instructions())?;
        let mut text = format!("{}\n", shape.heading(&program));
        let _ = writeln!(text, "{} tokens of context, floors at {}\n", grouped(self.context), rate(self.bandwidth));
        for index in 0..program.plan().kinds().len() {
            self.kind(&mut text, &program, index, extent.rows);
        }
        text.push_str(&buffers(&program, extent, &shape.geometry));
        if !self.no_compile {
            text.push_str(&self.kernels(&program)?);
        }
        output::write(&text)
    }

    /// The reads of one kind of layer in both phases.
    fn kind(&self, text: &mut String, program: &Program, index: usize, rows: usize) {
        let plan = program.plan();
        let kind = &plan.kinds()[index];
        let reads = |rows| kind.reads(plan.geometry(), StepExtent { tokens: self.context, rows });
        let layers = |kind_of: &dyn Fn(usize) -> usize| {
            ranges(&(0..plan.layers()).filter(|&layer| kind_of(layer) == index).collect::<Vec<_>>())
        };
        let decoding = layers(&|layer| plan.decode_kind(layer));
        if !decoding.is_empty() {
            let _ = writeln!(text, "layers {decoding}, decoding one token\n\n{}", self.decode(kind, &reads(1)));
            let turns =
                (0..plan.layers()).filter(|&layer| plan.decode_kind(layer) == index).map(|layer| plan.turns(layer));
            if let Some(turns) = turns.max().filter(|turns| *turns > 1) {
                let _ = writeln!(
                    text,
                    "KV heads take turns at stage 0: a renewal scans it over {turns} steps, and cuts in the last\n"
                );
            }
        }
        let prefill = layers(&|layer| plan.prefill_kind(layer));
        if !prefill.is_empty() {
            let heading = format!("layers {prefill}, prefill of the last {} tokens", grouped(rows));
            let _ = writeln!(text, "{heading}\n\n{}", self.prefill(&reads(rows)));
            if let LayerPlan::Pruned(_) = kind {
                let _ = writeln!(text, "{}\n", dense_path(program.clone().with_dense_path().dense_path(index)));
            }
        }
    }

    fn floor(&self, bytes: f64) -> String {
        seconds(bytes / self.bandwidth)
    }

    fn decode(&self, kind: &LayerPlan, reads: &[Reads]) -> String {
        let mut table = Table::new(["part", "chunks", "keys a KV head", "bytes", "floor", "renewed every"]);
        let refresh = |part: Part| match (part, kind) {
            (Part::Scan { stage }, LayerPlan::Pruned(layer)) => grouped(layer.stages[stage].refresh),
            _ => NOTHING.to_owned(),
        };
        for part in reads {
            table.row([
                name(part.part),
                grouped(part.chunks),
                keys(part.distinct),
                bytes(part.distinct_bytes()),
                self.floor(part.distinct_bytes()),
                refresh(part.part),
            ]);
        }
        let LayerPlan::Pruned(layer) = kind else { return table.to_string() };
        if layer.stages.is_empty() {
            return table.to_string();
        }
        let mut sum = |what: String, share: &dyn Fn(Part) -> f64| {
            let distinct = reads.iter().map(|part| share(part.part) * part.distinct).sum();
            let total = reads.iter().map(|part| share(part.part) * part.distinct_bytes()).sum();
            let nothing = || NOTHING.to_owned();
            table.row([what, nothing(), keys(distinct), bytes(total), self.floor(total), nothing()]);
        };
        for first in 0..layer.stages.len() {
            let what = if first == 0 { "all renewed".to_owned() } else { format!("from stage {first} on") };
            sum(what, &|part| match part {
                Part::Scan { stage } if stage < first => 0.0,
                Part::Scan { .. } | Part::Attend => 1.0,
            });
        }
        sum("mean of all steps".to_owned(), &|part| match part {
            Part::Scan { stage } => layer.renewals(stage),
            Part::Attend => 1.0,
        });
        table.to_string()
    }

    fn prefill(&self, reads: &[Reads]) -> String {
        let heading =
            ["part", "lists", "chunks", "loads a KV head", "bytes loaded", "keys a KV head", "bytes", "floor"];
        let mut table = Table::new(heading);
        for part in reads {
            table.row([
                name(part.part),
                grouped(part.lists),
                grouped(part.chunks),
                keys(part.loaded),
                bytes(part.loaded_bytes()),
                keys(part.distinct),
                bytes(part.distinct_bytes()),
                self.floor(part.distinct_bytes()),
            ]);
        }
        table.to_string()
    }

    /// What each kernel takes of a multiprocessor.
    fn kernels(&self, program: &Program) -> Result<String> {
        let compiler = Compiler::from_environment(self.architecture)?;
        compiler.expect_architecture()?;
        let kernels = program.kernels();
        let texts: Vec<(&str, &str)> = kernels.iter().map(|kernel| (&*kernel.name, &*kernel.text)).collect();
        let cubins = compiler.cubins(&texts, &|_| ()).map_err(ihip_runtime::Error::from)?;
        let limits = self.architecture.multiprocessor();
        let heading =
            ["kernel", "registers", "spill stores", "spill loads", "shared", "threads", "blocks", "occupancy"];
        let mut table = Table::new(heading);
        for (kernel, cubin) in kernels.iter().zip(cubins) {
            let taken = cubin.resources;
            let (blocks, occupancy) = match limits {
                Some(limits) => (
                    grouped(limits.resident_blocks(kernel.threads, &taken, kernel.shared_bytes) as usize),
                    format!("{:.0} %", 100.0 * limits.occupancy(kernel.threads, &taken, kernel.shared_bytes)),
                ),
                None => (NOTHING.to_owned(), NOTHING.to_owned()),
            };
            table.row([
                kernel.name.clone(),
                grouped(taken.registers as usize),
                grouped(taken.spill_store_bytes as usize),
                grouped(taken.spill_load_bytes as usize),
                grouped((taken.shared_bytes + kernel.shared_bytes) as usize),
                grouped(kernel.threads as usize),
                blocks,
                occupancy,
            ]);
        }
        let of = match limits {
            Some(limits) => format!(
                "{} has room for {} warps, {} blocks, 65,536 registers and {} bytes of shared memory",
                self.architecture,
                limits.warps,
                limits.blocks,
                grouped(limits.shared_bytes as usize)
            ),
            None => format!("what a multiprocessor of {} holds is not known here", self.architecture),
        };
        Ok(format!("\nkernels for {}: {of}\n\n{table}", self.architecture))
    }
}

/// How far `--dense-path` goes, and why.
fn dense_path(DensePath { tokens, estimate }: DensePath) -> String {
    if tokens == 0 {
        return "with --dense-path the same: pruning is estimated to take less time from the first token on".to_owned();
    }
    let times = [estimate.dense, estimate.pruned].map(seconds);
    let [dense, pruned] = times;
    format!(
        "with --dense-path the first {} tokens attend to every key: on an H200 in {dense} instead of {pruned}, by measured rates",
        grouped(tokens)
    )
}

fn name(part: Part) -> String {
    match part {
        Part::Scan { stage } => format!("stage {stage}"),
        Part::Attend => "attend".to_owned(),
    }
}

/// Bytes a second, to a hundredth: `3.05 TB/s`.
fn rate(value: f64) -> String {
    if value >= 1e12 { format!("{:.2} TB/s", value / 1e12) } else { format!("{:.2} GB/s", value / 1e9) }
}

fn keys(expected: f64) -> String {
    grouped(expected.round() as usize)
}

/// The cache and every other buffer of a request.
fn buffers(program: &Program, extent: Extent, geometry: &Geometry) -> String {
    let plan = program.plan();
    let mut table = Table::new(["buffer", "of", "elements", "bytes"]);
    let mut push = |buffer: String, of: String, elements: usize, size: usize| {
        table.row([buffer, of, grouped(elements), bytes(size as f64)]);
    };
    let every = "each layer".to_owned();
    let pages = extent.tokens.div_ceil(geometry.page as usize);
    let cached = pages * (geometry.page * geometry.kv_heads * geometry.head_dim) as usize;
    for what in ["Keys", "Values"] {
        push(what.to_owned(), every.clone(), cached, pages * geometry.page_bytes());
    }
    let named = |storage: &Storage| (format!("{:?}", storage.buffer), storage.count, storage.bytes());
    for index in 0..plan.kinds().len() {
        let layers: Vec<usize> = (0..plan.layers()).filter(|&layer| plan.decode_kind(layer) == index).collect();
        let Some(&first) = layers.first() else { continue };
        for storage in program.layer_state(first, extent) {
            let (buffer, elements, size) = named(&storage);
            push(buffer, format!("each of {}", ranges(&layers)), elements, size);
        }
    }
    let angles = program.rope_positions(extent) * geometry.head_dim as usize / 2;
    push("RopeTable".to_owned(), "the request".to_owned(), angles, angles * size_of::<[f32; 2]>());
    for storage in program.workspace(extent) {
        let (buffer, elements, size) = named(&storage);
        push(buffer, "the request".to_owned(), elements, size);
    }
    format!("buffers for steps of up to {} tokens\n\n{table}", grouped(extent.rows))
}
