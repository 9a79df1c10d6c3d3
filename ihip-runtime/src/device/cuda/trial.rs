//! Tries launch tunings on a GPU: the bench of a [`crate::tuning::Tuner`], and whole steps of two programs side by side.

use std::ops::Range;

use ihip_dsl::emit::{Kernel, Launch, Program};
use ihip_dsl::tuning::{Tunable, Tunings};
use ihip_dsl::{Geometry, LayerPlan, Plan};

use super::timing::{AttentionTimer, TimedLayer, decoding_step, prefill_steps};
use super::{CudaCache, CudaTensor};
use crate::jit::Resources;
use crate::session::{Phase, SEGMENT, segment_end};
use crate::tuning::{Bench, Case, Gate, Mistake, StepOutcome};
use crate::{Device, Error, Result, Step};

/// Rows of the prefill call whose outcome is compared with the default's: not all query blocks are whole.
const COMPARED_ROWS: usize = 600;

/// A part of a request that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimedPart {
    /// A decoding step that renews the mask from a stage on, or not at all.
    Decode {
        /// The stage.
        restart: Option<usize>,
    },
    /// The prefill of the last rows of the context.
    Prefill {
        /// Rows.
        rows: usize,
    },
}

/// A case on the GPU.
#[derive(Debug)]
struct Uploaded {
    /// Position of the call's first query.
    first: usize,
    /// Projections of the positions before: no queries, keys, values.
    before: CudaTensor,
    /// Those of the call, and the same on the host.
    call: CudaTensor,
    rows: Vec<f32>,
    out: CudaTensor,
}

/// A layer over a context, with the default's outcomes.
#[derive(Debug)]
pub struct GpuBench<'a> {
    timer: &'a mut AttentionTimer,
    gate: &'a Gate,
    context: usize,
    /// Rows of the prefill that is timed.
    rows: usize,
    /// Of prefill, then of decoding, as all pairs here.
    cases: [Uploaded; 2],
    default: TimedLayer,
    outcomes: [StepOutcome; 2],
    candidate: Option<TimedLayer>,
}

impl<'a> GpuBench<'a> {
    /// A bench for a plan of one layer, whose prefill is timed over the last `rows` rows of the context.
    ///
    /// # Errors
    /// Out of memory; [`Error::Untunable`] where the kernels as they are declared do not pass the gate.
    pub fn new(
        timer: &'a mut AttentionTimer,
        plan: &Plan,
        context: usize,
        rows: usize,
        gate: &'a Gate,
    ) -> Result<Self> {
        let program = timer.device.program_with(plan, Tunings::default())?;
        let upload = |timer: &mut AttentionTimer, decodes| timer.upload(plan.geometry(), gate.case(decodes));
        let mut cases = [upload(timer, false)?, upload(timer, true)?];
        for decodes in [false, true] {
            let outcomes = timer.attend(program.clone(), &mut cases[usize::from(decodes)], decodes)?;
            if let Some(mistake) = outcomes.iter().find_map(|outcome| gate.check(decodes, outcome)) {
                return Err(Error::Untunable { plan: plan.name().to_owned(), mistake: mistake.to_string() });
            }
        }
        let mut default = timer.layer_of(program, context)?;
        let decoding = timer.outcome(&mut default, true)?;
        let outcomes = [timer.outcome(&mut default, false)?, decoding];
        Ok(Self { timer, gate, context, rows, cases, default, outcomes, candidate: None })
    }
}

impl Bench for GpuBench<'_> {
    fn compile(&mut self, kernels: &[Kernel]) -> Vec<std::result::Result<Resources, String>> {
        let first_line = |error: String| error.lines().next().unwrap_or_default().to_owned();
        let taken = self.timer.device.loader.resources(kernels);
        taken.into_iter().map(|taken| taken.map_err(|error| first_line(error.to_string()))).collect()
    }

    fn check(&mut self, candidate: &Program, tunable: &Tunable) -> Result<Option<Mistake>> {
        let decodes = tunable.tuning.decodes();
        self.candidate = None;
        let outcomes = self.timer.attend(candidate.clone(), &mut self.cases[usize::from(decodes)], decodes)?;
        if let Some(mistake) = outcomes.iter().find_map(|outcome| self.gate.check(decodes, outcome)) {
            return Ok(Some(mistake));
        }
        let mut layer = self.timer.layer_of(candidate.clone(), self.context)?;
        // The default's were taken in this order from a layer of the same noise.
        let decoding = self.timer.outcome(&mut layer, true)?;
        let outcome = if decodes { decoding } else { self.timer.outcome(&mut layer, false)? };
        let mistake = self.gate.compare(&self.outcomes[usize::from(decodes)], &outcome);
        self.candidate = Some(layer);
        Ok(mistake)
    }

    fn time(&mut self, _: &Program, tunable: &Tunable, samples: usize) -> Result<[Vec<f64>; 2]> {
        let step = if tunable.tuning.decodes() {
            let renews = decoding_step(&self.default, Some(0));
            let launches = self.default.cache.launches_of(&renews, 0);
            // What no renewal launches, a step that reuses the list does.
            let launched = launches.iter().any(|launch| launch.kernel == tunable.kernel);
            if launched { renews } else { decoding_step(&self.default, None) }
        } else {
            let (context, rows) = (self.context, self.rows.min(SEGMENT));
            prefill_steps(context, rows).pop().ok_or(Error::NothingToTime { context, rows })?
        };
        let unchecked = || Error::NoCandidate { kernel: tunable.kernel.clone() };
        let candidate = self.candidate.as_mut().ok_or_else(unchecked)?;
        self.timer.paired_kernel([&mut self.default, candidate], &step, &tunable.kernel, samples)
    }
}

impl AttentionTimer {
    /// Times a part of a request over two layers in turn, a sample of the first before each of the second.
    ///
    /// # Errors
    /// A failed launch.
    pub fn paired(
        &mut self,
        mut layers: [&mut TimedLayer; 2],
        part: TimedPart,
        samples: usize,
    ) -> Result<[Vec<f64>; 2]> {
        let mut times = [Vec::new(), Vec::new()];
        let run = |timer: &mut Self, layer: &mut TimedLayer| match part {
            TimedPart::Decode { restart } => timer.replay_decode(layer, restart),
            TimedPart::Prefill { rows } => timer.run_prefill(layer, rows),
        };
        for layer in &mut layers {
            if let TimedPart::Decode { restart } = part {
                let step = decoding_step(layer, restart);
                self.device.begin(&mut layer.cache, &step, &[0])?;
            }
            // The first runs unrecorded, the second records.
            run(self, layer)?;
            run(self, layer)?;
        }
        for _ in 0..samples {
            for (layer, times) in layers.iter_mut().zip(&mut times) {
                times.push(self.sample(&mut |timer| run(timer, layer))?);
            }
        }
        Ok(times)
    }

    /// Times one kernel of a step over two layers in turn.
    fn paired_kernel(
        &mut self,
        mut layers: [&mut TimedLayer; 2],
        step: &Step,
        kernel: &str,
        samples: usize,
    ) -> Result<[Vec<f64>; 2]> {
        let mut launches: Vec<Vec<Launch>> = Vec::new();
        for layer in &mut layers {
            // What the kernel reads comes from the kernels before it.
            self.run_step(layer, step)?;
            let mut own = layer.cache.launches(0);
            own.retain(|launch| launch.kernel == kernel);
            launches.push(own);
        }
        let mut times = [Vec::new(), Vec::new()];
        // One sample more: the first of a kernel loads it.
        for sample in 0..=samples {
            for ((layer, launches), times) in layers.iter_mut().zip(&launches).zip(&mut times) {
                let activations = [layer.qkv.single.address(), layer.out.single.address()];
                let cache = &layer.cache;
                let seconds = self.sample(&mut |timer| {
                    launches.iter().try_for_each(|launch| timer.device.launch_in(cache, launch, 0, activations))
                })?;
                if sample > 0 {
                    times.push(seconds);
                }
            }
        }
        // Scores that were left behind are taken away by the selections after them.
        layers.into_iter().try_for_each(|layer| self.run_step(layer, step))?;
        Ok(times)
    }

    /// What a step of the layer leaves behind, over fresh queries, keys and values of its rows.
    fn outcome(&mut self, layer: &mut TimedLayer, decodes: bool) -> Result<StepOutcome> {
        let step = if decodes {
            decoding_step(layer, Some(0))
        } else {
            let start = layer.context.saturating_sub(COMPARED_ROWS) / SEGMENT * SEGMENT;
            let rows = (layer.context - start).min(COMPARED_ROWS);
            Step { start, rows, t_max: segment_end(start), phase: Phase::Prefill }
        };
        self.fill_projections(layer)?;
        self.device.record_masks(&mut layer.cache, true);
        self.run_step(layer, &step)?;
        self.left_behind(&layer.cache, &layer.out, step.rows)
    }

    /// Brings a case to the GPU: what is cached before its call, and the call itself.
    fn upload(&mut self, geometry: &Geometry, case: &Case) -> Result<Uploaded> {
        let [query, key] = [geometry.query_heads, geometry.kv_heads].map(|heads| (heads * geometry.head_dim) as usize);
        let columns = query + 2 * key;
        let rows = |positions: Range<usize>| {
            let mut rows = Vec::with_capacity(positions.len() * columns);
            for position in positions {
                match position.checked_sub(case.first) {
                    Some(row) => rows.extend_from_slice(&case.queries[row * query..][..query]),
                    None => rows.resize(rows.len() + query, 0.0),
                }
                rows.extend_from_slice(&case.keys[position * key..][..key]);
                rows.extend_from_slice(&case.values[position * key..][..key]);
            }
            rows
        };
        let before = self.device.tensor(case.first, columns)?;
        before.single.write(0, &rows(0..case.first))?;
        let call = self.device.tensor(case.rows, columns)?;
        let out = self.device.tensor(case.first, query)?;
        Ok(Uploaded { first: case.first, before, call, rows: rows(case.first..case.first + case.rows), out })
    }

    /// What `program` makes of a case: in decoding of a step that renews its list, and of one that reuses it.
    fn attend(&mut self, program: Program, case: &mut Uploaded, decodes: bool) -> Result<[StepOutcome; 2]> {
        let rows = case.call.rows;
        let prefill = |start, rows| Step { start, rows, t_max: segment_end(start), phase: Phase::Prefill };
        let phase = if decodes { Phase::Decode { renewals: vec![Some(0).into()] } } else { Phase::Prefill };
        let call = Step { phase, ..prefill(case.first, rows) };
        let mut cache = self.device.cache_of(program, case.first + rows)?;
        self.device.record_masks(&mut cache, true);
        // Queries of before are zero, and stay so where they are rotated in place; those of the call do not.
        case.call.single.write(0, &case.rows)?;
        self.device.begin(&mut cache, &prefill(0, case.first), &[])?;
        self.device.attention(&mut cache, 0, &case.before, &mut case.out)?;
        self.device.begin(&mut cache, &call, &[])?;
        self.device.attention(&mut cache, 0, &case.call, &mut case.out)?;
        let renewed = self.left_behind(&cache, &case.out, rows)?;
        if !decodes {
            return Ok([renewed.clone(), renewed]);
        }
        // The same token once more, by the kernels of a step that reuses its list.
        case.call.single.write(0, &case.rows)?;
        self.device.begin(&mut cache, &Step { phase: Phase::Decode { renewals: vec![None.into()] }, ..call }, &[])?;
        self.device.attention(&mut cache, 0, &case.call, &mut case.out)?;
        let reused = self.left_behind(&cache, &case.out, rows)?;
        Ok([renewed, reused])
    }

    fn run_step(&mut self, layer: &mut TimedLayer, step: &Step) -> Result<()> {
        self.device.begin(&mut layer.cache, step, &[])?;
        let TimedLayer { cache, qkv, out, .. } = layer;
        self.device.attention(cache, 0, qkv, out)
    }

    /// Output and lists of the step that ran last.
    fn left_behind(&mut self, cache: &CudaCache, out: &CudaTensor, rows: usize) -> Result<StepOutcome> {
        let out = self.device.read(out, rows)?;
        let staged = |plan: &LayerPlan| matches!(plan, LayerPlan::Pruned(layer) if !layer.stages.is_empty());
        let lists = self.device.block_lists(cache, 0)?;
        let kept = staged(cache.step.layer(cache.program.plan(), 0));
        Ok(StepOutcome { out, lists: lists.filter(|_| kept) })
    }
}
