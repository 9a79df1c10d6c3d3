//! Times attention of one layer over random data, and what the GPU can do at best, by events on the device's stream.
//!
//! Every sample begins with a cold L2: a buffer several times its size is read before. Decoding is timed as the graph
//! that a request replays, so that a sample is what a step costs within one.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, sys};
use ihip_dsl::emit::measure::MeasureKernel;
use ihip_dsl::emit::{Activation, Element, Program};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{KvType, Plan};

use super::launch::{Function, Operand};
use super::linear::Shape;
use super::memory::{Buffer, failed};
use super::{CudaCache, CudaDevice, CudaTensor, Precision};
use crate::jit::Architecture;
use crate::session::{Phase, SEGMENT, segment_end};
use crate::{Device, Error, Result, Step};

/// Bytes read between two samples: several times the L2 of any GPU.
const COLD_BYTES: usize = 512 << 20;
/// Bytes that the bandwidth is measured over.
const CEILING_BYTES: usize = 2 << 30;
/// Rows, columns and depth of the matrix product.
const PRODUCT: usize = 8192;
/// Samples of each ceiling.
const CEILING_SAMPLES: usize = 20;
/// Blocks of threads of the kernels that fill and read.
pub(super) const GRID: [u32; 3] = [1056, 1, 1];
/// Elements that one launch fills.
const MOST_ELEMENTS: usize = 1 << 30;

/// What the GPU does at best, in seconds of every sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ceilings {
    /// A device copy of [`Ceilings::bytes`] bytes.
    pub copy: Vec<f64>,
    /// A kernel that reads [`Ceilings::bytes`] bytes.
    pub read: Vec<f64>,
    /// A product of bf16 matrices by cuBLASLt, [`Ceilings::operations`] operations.
    pub product: Vec<f64>,
    /// A graph of one kernel that does nothing.
    pub launch: Vec<f64>,
}

impl Ceilings {
    /// Bytes that the copy reads and as many that it writes; bytes that the kernel reads.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        CEILING_BYTES
    }

    /// Multiplications and additions of the product.
    #[must_use]
    pub const fn operations(&self) -> f64 {
        2.0 * (PRODUCT * PRODUCT * PRODUCT) as f64
    }
}

/// One layer with a cache of random keys and values, ready to be timed.
#[derive(Debug)]
pub struct TimedLayer {
    pub(super) cache: CudaCache,
    pub(super) qkv: CudaTensor,
    pub(super) out: CudaTensor,
    pub(super) context: usize,
}

/// Times kernels and layers on one GPU.
#[derive(Debug)]
pub struct AttentionTimer {
    pub(super) device: CudaDevice,
    read: Arc<Function>,
    cold: Arc<Buffer>,
    pub(super) seen: Arc<Buffer>,
    begin: CudaEvent,
    end: CudaEvent,
}

impl AttentionTimer {
    /// Prepares GPU `ordinal`.
    ///
    /// # Errors
    /// Those of [`CudaDevice::new`], and out of memory.
    pub fn new(ordinal: usize) -> Result<Self> {
        let mut device = CudaDevice::new(ordinal, Precision::Bf16)?;
        let event = || device.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed("cuEventCreate"));
        let (begin, end) = (event()?, event()?);
        let read = device.one(MeasureKernel::Read)?;
        let cold = Buffer::new(&device.stream, "what is read between samples", COLD_BYTES, true)?;
        let seen = Buffer::new(&device.stream, "what a reading kernel saw", size_of::<u32>(), true)?;
        Ok(Self { device, read, cold, seen, begin, end })
    }

    /// The GPU's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.device.name()
    }

    /// The driver's interface, such as `13.0`.
    ///
    /// # Errors
    /// Where the driver fails to answer.
    pub fn driver(&self) -> Result<String> {
        let mut version = 0;
        // SAFETY: the pointer is valid for one integer.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// Its architecture, and the version of NVRTC that compiles for it.
    #[must_use]
    pub fn compiler(&self) -> (Architecture, (u32, u32)) {
        let compiler = self.device.loader.compiler();
        (compiler.architecture(), compiler.nvrtc_version())
    }

    /// Measures what the GPU does at best.
    ///
    /// # Errors
    /// Out of memory, or a failed launch.
    pub fn ceilings(&mut self) -> Result<Ceilings> {
        let what = "what bandwidth is measured over";
        let buffers = [0; 2].map(|_| Buffer::new(&self.device.stream, what, CEILING_BYTES, true));
        let [from, to] = buffers;
        let (from, to) = (from?, to?);
        let copy = self.samples(CEILING_SAMPLES, &mut |timer| {
            let stream = &timer.device.stream;
            // SAFETY: both buffers are this long, and live until the stream is idle.
            unsafe { result::memcpy_dtod_async(to.address(), from.address(), CEILING_BYTES, stream.cu_stream()) }
                .map_err(failed("cuMemcpyDtoDAsync"))
        })?;
        let read = self.samples(CEILING_SAMPLES, &mut |timer| timer.read(&from, CEILING_BYTES))?;
        let launch = self.empty_graph(&from)?;

        let element = Activation::Bf16.element().bytes();
        let noise = self.device.one(MeasureKernel::Noise(KvType::Bf16))?;
        for (seed, buffer) in [&from, &to].into_iter().enumerate() {
            self.noise(&noise, buffer, PRODUCT * PRODUCT, element, seed)?;
        }
        let shape = Shape { outputs: PRODUCT, inputs: PRODUCT };
        let second = to.address() + (CEILING_BYTES / 2) as u64;
        let product = self.samples(CEILING_SAMPLES, &mut |timer| {
            let addresses = [from.address(), to.address(), second];
            // SAFETY: each of the three has half of `CEILING_BYTES`, more than such a matrix of f32, for as long as the timer waits.
            unsafe { timer.device.products.run(&timer.device.stream, shape, PRODUCT, addresses, false) }
        })?;
        Ok(Ceilings { copy, read, product, launch })
    }

    /// A layer whose `context` tokens are in the cache: keys, values and projections are noise.
    ///
    /// # Errors
    /// Out of memory, or a kernel that does not compile.
    ///
    /// # Panics
    /// Where the plan has other than one layer.
    pub fn layer(&mut self, plan: &Plan, context: usize) -> Result<TimedLayer> {
        let program = self.device.program(plan, context)?;
        self.layer_of(program, context)
    }

    /// The same where the prompt begins densely as far as that is estimated to take less time; `None` where that is nowhere
    /// among its last `rows` tokens.
    ///
    /// # Errors
    /// Those of [`AttentionTimer::layer`].
    ///
    /// # Panics
    /// Where the plan has other than one layer.
    pub fn dense_path_layer(&mut self, plan: &Plan, context: usize, rows: usize) -> Result<Option<TimedLayer>> {
        let program = self.device.program(plan, context)?.with_dense_path();
        let taken = program.begins_densely(0, segment_end(context - rows));
        taken.then(|| self.layer_of(program, context)).transpose()
    }

    /// The same with kernels as they are declared, whatever is tuned.
    ///
    /// # Errors
    /// Those of [`AttentionTimer::layer`].
    ///
    /// # Panics
    /// Where the plan has other than one layer.
    pub fn declared_layer(&mut self, plan: &Plan, context: usize) -> Result<TimedLayer> {
        let program = self.device.program_with(plan, Tunings::default())?;
        self.layer_of(program, context)
    }

    /// The same with the kernels of `program`, whatever is tuned.
    ///
    /// # Errors
    /// Those of [`AttentionTimer::layer`].
    ///
    /// # Panics
    /// Where the plan has other than one layer.
    pub(super) fn layer_of(&mut self, program: Program, context: usize) -> Result<TimedLayer> {
        assert_eq!(program.plan().layers(), 1, "one layer is timed");
        let geometry = *program.plan().geometry();
        let cache = self.device.cache_of(program, context)?;
        let noise = self.device.one(MeasureKernel::Noise(geometry.kv_type))?;
        let bytes = context.div_ceil(geometry.page as usize) * geometry.page_bytes();
        let element = Element::from(geometry.kv_type).bytes();
        for (seed, buffer) in cache.keys_and_values(0).iter().enumerate() {
            self.noise(&noise, buffer, bytes / element, element, seed)?;
        }
        let rows = context.min(SEGMENT);
        let qkv = self.device.tensor(rows, geometry.projected_columns())?;
        let out = self.device.tensor(rows, geometry.attended_columns())?;
        let mut layer = TimedLayer { cache, qkv, out, context };
        self.fill_projections(&layer)?;
        // Lists and whatever else decoding keeps.
        self.decode(&mut layer, Some(0), 1)?;
        Ok(layer)
    }

    /// Fills the projections of a layer's rows: steps may rotate what is there.
    pub(super) fn fill_projections(&mut self, layer: &TimedLayer) -> Result<()> {
        let noise = self.device.one(MeasureKernel::Noise(KvType::F32))?;
        self.noise(&noise, &layer.qkv.single, layer.qkv.rows * layer.qkv.columns, size_of::<f32>(), 2)
    }

    /// Seconds of a decoding step that renews the layer's mask from stage `restart` on, or not at all.
    ///
    /// # Errors
    /// A failed launch.
    pub fn decode(&mut self, layer: &mut TimedLayer, restart: Option<usize>, samples: usize) -> Result<Vec<f64>> {
        let step = decoding_step(layer, restart);
        self.device.begin(&mut layer.cache, &step, &[0])?;
        // The first runs unrecorded, the second records.
        self.replay_decode(layer, restart)?;
        self.replay_decode(layer, restart)?;
        self.samples(samples, &mut |timer| timer.replay_decode(layer, restart))
    }

    /// Runs the decoding step that was begun, or replays it.
    pub(super) fn replay_decode(&mut self, layer: &mut TimedLayer, restart: Option<usize>) -> Result<()> {
        let step = decoding_step(layer, restart);
        let TimedLayer { cache, qkv, out, .. } = layer;
        self.device.replay(cache, &step, &mut |device, cache| device.attention(cache, 0, qkv, out))
    }

    /// Seconds of the prefill of the last `rows` rows of the context, in steps as long as a segment.
    ///
    /// # Errors
    /// A failed launch.
    pub fn prefill(&mut self, layer: &mut TimedLayer, rows: usize, samples: usize) -> Result<Vec<f64>> {
        self.samples(samples, &mut |timer| timer.run_prefill(layer, rows))
    }

    /// Runs the prefill of the last `rows` rows.
    pub(super) fn run_prefill(&mut self, layer: &mut TimedLayer, rows: usize) -> Result<()> {
        for step in &prefill_steps(layer.context, rows) {
            self.device.begin(&mut layer.cache, step, &[])?;
            let TimedLayer { cache, qkv, out, .. } = &mut *layer;
            self.device.attention(cache, 0, qkv, out)?;
        }
        Ok(())
    }

    /// Seconds of every launch of a decoding step, each on its own with a cold L2, with the kernel's name.
    ///
    /// # Errors
    /// A failed launch.
    pub fn decode_kernels(
        &mut self,
        layer: &mut TimedLayer,
        restart: Option<usize>,
        samples: usize,
    ) -> Result<Vec<(String, Vec<f64>)>> {
        let step = decoding_step(layer, restart);
        self.kernels(layer, &step, samples)
    }

    /// The same for the last step of a prefill.
    ///
    /// # Errors
    /// A failed launch.
    pub fn prefill_kernels(&mut self, layer: &mut TimedLayer, samples: usize) -> Result<Vec<(String, Vec<f64>)>> {
        let rows = layer.context.min(SEGMENT);
        let steps = prefill_steps(layer.context, rows);
        let last = steps.last().ok_or(Error::NothingToTime { context: layer.context, rows })?;
        self.kernels(layer, last, samples)
    }

    fn kernels(&mut self, layer: &mut TimedLayer, step: &Step, samples: usize) -> Result<Vec<(String, Vec<f64>)>> {
        self.device.begin(&mut layer.cache, step, &[])?;
        let launches = layer.cache.launches(0);
        let mut times: Vec<(String, Vec<f64>)> =
            launches.iter().map(|launch| (launch.kernel.clone(), Vec::new())).collect();
        let activations = [layer.qkv.single.address(), layer.out.single.address()];
        // One sample more: the first of a kernel loads it.
        for sample in 0..=samples {
            for (launch, (_, times)) in launches.iter().zip(&mut times) {
                let cache = &layer.cache;
                let seconds = self.sample(&mut |timer| timer.device.launch_in(cache, launch, 0, activations))?;
                if sample > 0 {
                    times.push(seconds);
                }
            }
        }
        Ok(times)
    }

    /// Times `work` after a warm-up, each time with a cold L2.
    pub(super) fn samples(&mut self, count: usize, work: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Vec<f64>> {
        work(self)?;
        (0..count).map(|_| self.sample(work)).collect()
    }

    pub(super) fn sample(&mut self, work: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<f64> {
        let cold = self.cold.clone();
        self.read(&cold, COLD_BYTES)?;
        self.begin.record(&self.device.stream).map_err(failed("cuEventRecord"))?;
        work(self)?;
        self.end.record(&self.device.stream).map_err(failed("cuEventRecord"))?;
        let milliseconds = self.begin.elapsed_ms(&self.end).map_err(failed("cuEventElapsedTime"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn read(&self, buffer: &Buffer, bytes: usize) -> Result<()> {
        let count = Operand::I32((bytes / 16) as i32);
        let operands = [Operand::Address(buffer.address()), count, Operand::Address(self.seen.address())];
        self.read.launch(&self.device.stream, GRID, &operands)
    }

    /// Fills the front of a buffer.
    pub(super) fn noise(
        &self,
        noise: &Function,
        buffer: &Buffer,
        elements: usize,
        bytes: usize,
        seed: usize,
    ) -> Result<()> {
        for (piece, first) in (0..elements).step_by(MOST_ELEMENTS).enumerate() {
            let count = MOST_ELEMENTS.min(elements - first);
            let to = Operand::Address(buffer.address() + (first * bytes) as u64);
            let seed = Operand::I32((seed + 16 * piece) as i32);
            noise.launch(&self.device.stream, GRID, &[to, Operand::I32(count as i32), seed])?;
        }
        Ok(())
    }

    fn empty_graph(&mut self, buffer: &Buffer) -> Result<Vec<f64>> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.device.stream.begin_capture(mode).map_err(failed("cuStreamBeginCapture"))?;
        let operands = [Operand::Address(buffer.address()), Operand::I32(0), Operand::Address(self.seen.address())];
        let launched = self.read.launch(&self.device.stream, [1, 1, 1], &operands);
        let ended = self.device.stream.end_capture(CUgraphInstantiate_flags(0));
        launched?;
        let graph = ended.map_err(failed("cuStreamEndCapture"))?;
        let graph = graph.ok_or(Error::NothingRecorded { what: "a kernel" })?;
        self.samples(CEILING_SAMPLES, &mut |_| graph.launch().map_err(failed("cuGraphLaunch")))
    }
}

pub(super) fn decoding_step(layer: &TimedLayer, restart: Option<usize>) -> Step {
    let start = layer.context - 1;
    Step { start, rows: 1, t_max: segment_end(start), phase: Phase::Decode { renewals: vec![restart.into()] } }
}

pub(super) fn prefill_steps(context: usize, rows: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut start = context.saturating_sub(rows);
    while start < context {
        let end = segment_end(start).min(context);
        steps.push(Step { start, rows: end - start, t_max: segment_end(start), phase: Phase::Prefill });
        start = end;
    }
    steps
}

impl CudaDevice {
    /// Compiles and loads one kernel of a measurement.
    pub(super) fn one(&mut self, kernel: MeasureKernel) -> Result<Arc<Function>> {
        let loaded = self.loader.load(vec![kernel.emit()])?;
        loaded.into_values().next().ok_or_else(|| Error::NotInPlan { name: kernel.name() })
    }
}
