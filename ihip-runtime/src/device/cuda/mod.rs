//! The CUDA device: one GPU, one stream, and another one where pages move.
//!
//! Everything else runs in the order of one stream, so that no operation waits for another on the host; only
//! [`CudaDevice::read`], [`CudaDevice::sample`] and [`CudaDevice::block_lists`] do. Decoding steps are recorded into
//! graphs, one for each pattern of renewals and only so many of them: whatever differs between two steps of a pattern lies in small
//! buffers that [`CudaDevice::begin`] fills before the graph runs.

mod allocation;
mod cache;
#[cfg(test)]
mod clocks;
mod division;
mod driver;
mod given;
mod launch;
mod ledger;
mod linear;
mod mapping;
mod memory;
mod order;
mod pinned;
#[cfg(test)]
mod races;
mod request;
mod runner;
mod tally;
mod tensor;
mod tiers;
mod timing;
mod together;
mod trial;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream};
use half::bf16;
use ihip_dsl::Plan;
use ihip_dsl::emit::model::{BLOCK_ELEMENTS, MAX_TOKENS, ModelKernel};
use ihip_dsl::emit::{Activation, Element, Launch, Paging, Program};
use ihip_dsl::tuning::Tunings;
use rayon::prelude::*;

pub use cache::CudaCache;
pub use division::GRAIN;
pub use ledger::Ledger;
pub use request::TimedRequest;
pub use runner::{KernelArgument, KernelBuffer, KernelRunner};
pub use tensor::{CudaMatrix, CudaTensor, CudaVector};
pub use timing::{AttentionTimer, Ceilings, TimedLayer};
pub use trial::{GpuBench, TimedPart};

use self::allocation::Allocation;
use self::cache::{MOST_GRAPHS, Recording};
use self::launch::{Function, Loader, Operand, word};
use self::ledger::Stream;
use self::linear::{Products, Shape};
use self::memory::{Buffer, failed};
use self::pinned::Ahead;
use self::tensor::mismatch;
use super::cpu::available_bytes;
use super::{BlockLists, Compilation, Device, HostAllocation, Sampling};
use crate::jit::{Architecture, Compiler, Watch};
use crate::kv::trace::PagesRead;
use crate::kv::{Budget, Placement, PrefillMoves, Traffic};
use crate::session::LONGEST_STEP;
use crate::tuning::Tables;
use crate::{Error, Result, Step};

/// Element type of weights and of the inputs of matrix products. Sums, the residual stream, scores and logits are
/// f32 in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Single precision, without TF32: for comparison with the CPU.
    F32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    const fn weights(self) -> Activation {
        match self {
            Self::F32 => Activation::F32,
            Self::Bf16 => Activation::Bf16,
        }
    }
}

/// One GPU.
#[derive(Debug)]
pub struct CudaDevice {
    name: String,
    precision: Precision,
    context: Arc<CudaContext>,
    stream: Stream,
    /// Where pages of the cache move.
    copies: Arc<CudaStream>,
    loader: Loader,
    tables: Tables,
    model: HashMap<String, Arc<Function>>,
    products: Products,
    /// Tokens of the step at hand, and the same on the host.
    tokens: Arc<Buffer>,
    host_tokens: Vec<u32>,
    /// How many of the step's tokens come before those of the call.
    passed: usize,
    /// Rows of the embedding that was last used.
    vocabulary: Option<usize>,
    /// The token that was last chosen.
    chosen: Arc<Buffer>,
    /// What keys and values of a request may take; those beyond the share of the GPU lie with the host.
    budget: Budget,
    /// The host's memory for the next cache, where that was asked for.
    prepared: Option<Ahead<Allocation>>,
    /// Whether prompts begin densely where that is estimated to take less time.
    dense_path: bool,
    /// Every tensor and weight named since a recording began.
    recording: Option<Vec<Arc<Buffer>>>,
}

impl CudaDevice {
    /// GPU `ordinal`, counted as the driver counts.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] where driver or GPU are missing, with what was found instead; [`Error::UnusableDevice`]
    /// where the driver is too old or cuBLASLt is missing; [`Error::Jit`] where NVRTC is.
    pub fn new(ordinal: usize, precision: Precision) -> Result<Self> {
        Self::watched(ordinal, precision, Watch::default())
    }

    /// The same; `watch` hears of every kernel that is compiled, now and later.
    ///
    /// # Errors
    /// Those of [`CudaDevice::new`].
    pub fn watched(ordinal: usize, precision: Precision, watch: Watch) -> Result<Self> {
        let context = driver::open(ordinal)?;
        let stream = Stream::new(context.new_stream().map_err(failed("cuStreamCreate"))?);
        let product = context.name().map_err(failed("cuDeviceGetName"))?;
        let compiler = Compiler::from_environment(architecture(&context)?)?.for_gpu().watched(watch);
        let tables = Tables::from_environment(compiler.architecture())?;
        let mut loader = Loader::new(context.clone(), compiler);
        let weights = precision.weights();
        let kernels = ModelKernel::all(weights).into_iter().map(|kernel| kernel.emit(weights)).collect();
        Ok(Self {
            name: format!("cuda:{ordinal} ({product})"),
            precision,
            tables,
            model: loader.load(kernels)?,
            products: Products::new(&stream, weights)?,
            tokens: Buffer::new(&stream, "a step's tokens", LONGEST_STEP * size_of::<u32>(), true)?,
            host_tokens: Vec::new(),
            passed: 0,
            vocabulary: None,
            chosen: Buffer::new(&stream, "the chosen token", size_of::<u32>(), true)?,
            budget: Budget::UNLIMITED,
            prepared: None,
            dense_path: false,
            recording: None,
            copies: context.new_stream().map_err(failed("cuStreamCreate"))?,
            context,
            stream,
            loader,
        })
    }

    /// From here on, prompts of requests begin densely as long as that is estimated to take less time ([`DensePath`]). What
    /// comes out is then not what the pipeline declares.
    ///
    /// [`DensePath`]: ihip_dsl::emit::DensePath
    pub const fn take_dense_path(&mut self) {
        self.dense_path = true;
    }

    /// From here on, `ledger` is asked before memory is allocated, and told when that is given back.
    pub fn account_to(&mut self, ledger: Arc<dyn Ledger>) {
        self.stream.ledger = ledger;
    }

    /// The kernels of a plan as they are tuned for a request of `capacity` tokens.
    fn program(&self, plan: &Plan, capacity: usize) -> Result<Program> {
        self.program_with(plan, self.tables.tunings(capacity))
    }

    /// The same with `tunings` of the caller's.
    fn program_with(&self, plan: &Plan, tunings: Tunings) -> Result<Program> {
        let program = Program::with(plan, Activation::F32, self.loader.instructions(), tunings)?;
        Ok(if self.dense_path { program.with_dense_path() } else { program })
    }

    /// Begins to allocate what a cache has with the host, where then `beside` bytes are left; nothing where it would be
    /// refused, which allocating the cache will say.
    fn prepared(&self, plan: &Plan, capacity: usize, beside: u64) -> Option<Ahead<Allocation>> {
        let program = self.program(plan, capacity).ok()?;
        division::placement(&program, capacity, self.budget).ok()?;
        let needed = division::host_bytes(&program, capacity, self.budget).saturating_add(beside);
        let sizes = cache::with_host(&self.stream, &program, capacity, self.budget).ok()?;
        if sizes.is_empty() || available_bytes().is_some_and(|available| needed > available) {
            return None;
        }
        let stream = self.stream.clone();
        Ahead::start(sizes, move |bytes| cache::host_memory(&stream, bytes)).ok()
    }

    /// The cache of a request that runs `program`.
    fn cache_of(&mut self, program: Program, capacity: usize) -> Result<CudaCache> {
        // What was prepared for another is given back before anything is asked for.
        let sizes = cache::with_host(&self.stream, &program, capacity, self.budget)?;
        let prepared = self.prepared.take().filter(|prepared| prepared.is_of(&sizes));
        division::placement(&program, capacity, self.budget)?;
        let needed = division::bytes(&program, capacity, self.budget);
        if let Some(available) = self.available_bytes()?.filter(|available| needed > *available) {
            let what = format!("the key-value cache of {capacity} tokens");
            return Err(Error::OutOfMemory { what, device: self.name(), needed, available });
        }
        let needed = division::host_bytes(&program, capacity, self.budget);
        // There was room for what was prepared, and some of it is taken by now.
        let refused = |available: &u64| prepared.is_none() && needed > *available;
        if let Some(available) = available_bytes().filter(refused) {
            let what = format!("what lies with the host of the key-value cache of {capacity} tokens");
            return Err(Error::OutOfMemory { what, device: "the host".to_owned(), needed, available });
        }
        let paging = division::paging(&program, capacity, self.budget);
        let program = paging.as_ref().map_or(program, |paging| paging.program().clone());
        let kernels = program.kernels().into_iter().chain(paging.iter().flat_map(Paging::kernels));
        let kernels = self.loader.load(kernels.collect())?;
        CudaCache::new(&self.stream, (program, paging), kernels, capacity, self.budget, prepared)
    }

    /// The address of a buffer that the launch at hand names.
    fn named(&mut self, buffer: &Arc<Buffer>) -> CUdeviceptr {
        if let Some(named) = &mut self.recording {
            named.push(buffer.clone());
        }
        buffer.address()
    }

    fn launch(&self, kernel: ModelKernel, grid: [u32; 3], operands: &[Operand]) -> Result<()> {
        let name = kernel.name(self.precision.weights());
        let function = self.model.get(&name).ok_or(Error::NotInPlan { name })?;
        function.launch(&self.stream, grid, operands)
    }

    /// One launch of `layer`'s attention; `activations` are projections and output.
    fn launch_in(&self, cache: &CudaCache, launch: &Launch, layer: usize, activations: [CUdeviceptr; 2]) -> Result<()> {
        let (function, operands) = cache.call(launch, layer, activations)?;
        function.launch(&self.stream, launch.grid, &operands)
    }

    /// Where an operation writes the inputs of a matrix product.
    fn product_input(&mut self, out: &mut CudaTensor) -> CUdeviceptr {
        out.held = self.precision.weights().element();
        let buffer = out.rounded.as_ref().unwrap_or(&out.single).clone();
        self.named(&buffer)
    }

    /// The values of a tensor that holds so many rows and columns of f32.
    fn single(&mut self, x: &CudaTensor, extents: [usize; 2], operation: &'static str) -> Result<CUdeviceptr> {
        x.expect(extents, Element::F32, operation)?;
        Ok(self.named(&x.single))
    }

    fn product(
        &mut self,
        x: &CudaTensor,
        rows: Range<usize>,
        weight: &CudaMatrix,
        out: &mut CudaTensor,
        add: bool,
    ) -> Result<()> {
        let CudaMatrix { shape, values } = weight;
        x.expect_room([rows.end, shape.inputs], "a linear map")?;
        let outputs = [rows.len(), shape.outputs];
        if add {
            out.expect(outputs, Element::F32, "a linear map that adds")?;
        } else {
            out.expect_room(outputs, "a linear map")?;
        }
        let element = self.precision.weights().element();
        let offset = |address, bytes: usize| address + (rows.start * shape.inputs * bytes) as CUdeviceptr;
        let input = match &x.rounded {
            Some(rounded) if x.held != element => {
                let (from, to) = (self.named(&x.single), self.named(rounded));
                let (from, to) = (offset(from, size_of::<f32>()), offset(to, element.bytes()));
                let count = rows.len() * shape.inputs;
                let operands = [Operand::Address(from), Operand::Address(to), Operand::I32(word(count)?)];
                self.launch(ModelKernel::Round, [count.div_ceil(BLOCK_ELEMENTS) as u32, 1, 1], &operands)?;
                to
            }
            rounded => {
                let address = self.named(rounded.as_ref().unwrap_or(&x.single));
                offset(address, element.bytes())
            }
        };
        let addresses = [self.named(values), input, self.named(&out.single)];
        out.held = Element::F32;
        // SAFETY: the tensors have so many rows and columns, as checked above, and live as long as what names them.
        unsafe { self.products.run(&self.stream, *shape, rows.len(), addresses, add) }
    }

    /// Runs `operations` while the stream records them, then runs what was recorded.
    fn record(
        &mut self,
        cache: &mut CudaCache,
        operations: &mut dyn FnMut(&mut Self, &mut CudaCache) -> Result<()>,
    ) -> Result<Recording> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("cuStreamBeginCapture"))?;
        self.recording = Some(cache.buffers());
        let outcome = operations(self, cache).and_then(|()| self.end_moves(cache));
        let mut buffers = self.recording.take().unwrap_or_default();
        // A recording that failed must be ended all the same: the stream takes nothing else before.
        let ended = self.stream.end_capture(CUgraphInstantiate_flags(0));
        outcome?;
        let graph = ended.map_err(failed("cuStreamEndCapture"))?;
        let graph = graph.ok_or(Error::NothingRecorded { what: "a decoding step" })?;
        graph.launch().map_err(failed("cuGraphLaunch"))?;
        buffers.sort_by_key(|buffer| buffer.address());
        buffers.dedup_by_key(|buffer| buffer.address());
        Ok(Recording::Recorded { graph, _buffers: buffers })
    }

    fn check_tokens(&self) -> Result<()> {
        let Some(vocabulary) = self.vocabulary else { return Ok(()) };
        match self.host_tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(&token) => Err(Error::NoSuchToken { token, vocabulary }),
            None => Ok(()),
        }
    }
}

impl Device for CudaDevice {
    type Tensor = CudaTensor;
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Cache = CudaCache;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn compilation(&self) -> Compilation {
        self.loader.compilation()
    }

    fn available_bytes(&self) -> Result<Option<u64>> {
        self.context.mem_get_info().map(|(free, _)| Some(free as u64)).map_err(failed("cuMemGetInfo"))
    }

    fn matrix(&mut self, outputs: usize, inputs: usize, values: Vec<f32>) -> Result<CudaMatrix> {
        let what = "a weight matrix";
        let values = match self.precision {
            Precision::F32 => Buffer::with(&self.stream, what, &values)?,
            Precision::Bf16 => {
                let rounded: Vec<bf16> = values.par_iter().map(|value| bf16::from_f32(*value)).collect();
                Buffer::with(&self.stream, what, &rounded)?
            }
        };
        Ok(CudaMatrix { shape: Shape { outputs, inputs }, values })
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<CudaVector> {
        Ok(CudaVector { length: values.len(), values: Buffer::with(&self.stream, "a norm's weights", &values)? })
    }

    fn tensor(&mut self, rows: usize, columns: usize) -> Result<CudaTensor> {
        let allocate = |bytes| Buffer::new(&self.stream, "activations", rows * columns * bytes, true);
        let rounded = match self.precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(allocate(size_of::<bf16>())?),
        };
        Ok(CudaTensor { rows, columns, held: Element::F32, single: allocate(size_of::<f32>())?, rounded })
    }

    fn limit_kv(&mut self, budget: Budget, _: usize) {
        self.prepared = None;
        self.budget = budget;
    }

    fn placement(&self, plan: &Plan, capacity: usize) -> Result<Placement> {
        division::placement(&self.program(plan, capacity)?, capacity, self.budget)
    }

    fn traffic(&mut self, cache: &CudaCache) -> Result<Traffic> {
        self.tally(cache)
    }

    fn residence(&mut self, cache: &CudaCache) -> Result<Placement> {
        self.join_moves(cache)?;
        cache.residence()
    }

    fn kv_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        self.program(plan, capacity).map_or(0, |program| division::kv_bytes(&program, capacity))
    }

    fn cache_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        // A plan without kernels is refused, with its reason, where the cache is allocated.
        self.program(plan, capacity).map_or(0, |program| division::bytes(&program, capacity, self.budget))
    }

    fn host_cache_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        self.program(plan, capacity).map_or(0, |program| division::host_bytes(&program, capacity, self.budget))
    }

    fn prefill_moves(&self, plan: &Plan, capacity: usize, chunk: usize) -> Result<PrefillMoves> {
        division::prefill_moves(&self.program(plan, capacity)?, capacity, self.budget, chunk)
    }

    fn prepare(&mut self, plan: &Plan, capacity: usize, beside: u64) {
        // What was prepared before is given back first.
        self.prepared = None;
        self.prepared = self.prepared(plan, capacity, beside);
    }

    fn host_allocation(&self, cache: &CudaCache) -> Option<HostAllocation> {
        cache.tiers.as_ref().map(|_| cache.host_allocation)
    }

    fn cache(&mut self, plan: &Arc<Plan>, capacity: usize) -> Result<CudaCache> {
        let program = self.program(plan, capacity)?;
        self.cache_of(program, capacity)
    }

    fn record_masks(&mut self, cache: &mut CudaCache, record: bool) {
        cache.record = record;
    }

    fn record_pages(&mut self, cache: &mut CudaCache, record: bool) {
        cache.record_pages = record;
    }

    fn pages_read(&mut self, cache: &CudaCache, layer: usize) -> Result<PagesRead> {
        cache.pages_read(layer)
    }

    fn begin(&mut self, cache: &mut CudaCache, step: &Step, tokens: &[u32]) -> Result<()> {
        if tokens.len() > LONGEST_STEP {
            return Err(Error::LongStep { rows: tokens.len(), longest: LONGEST_STEP });
        }
        self.host_tokens = tokens.to_vec();
        self.check_tokens()?;
        // What moves pages reads the step before.
        self.join_moves(cache)?;
        cache.sum_up()?;
        cache.begin(step)?;
        self.passed = 0;
        self.tokens.write(0, tokens)
    }

    fn turn_to(&mut self, cache: &mut CudaCache, call: &Step) -> Result<()> {
        self.passed = call.start - cache.step.start;
        cache.turn_to(call)
    }

    fn replay(
        &mut self,
        cache: &mut CudaCache,
        step: &Step,
        operations: &mut dyn FnMut(&mut Self, &mut CudaCache) -> Result<()>,
    ) -> Result<()> {
        let Some(pattern) = step.graph_key() else { return operations(self, cache) };
        // Whatever one pattern launches of libraries, the others do.
        let loaded = !cache.graphs.is_empty();
        let recording = match cache.graphs.get(pattern) {
            Some(Recording::Recorded { graph, .. }) => return graph.launch().map_err(failed("cuGraphLaunch")),
            Some(Recording::Ran) => self.record(cache, operations)?,
            None if cache.graphs.len() >= MOST_GRAPHS => return operations(self, cache),
            None if loaded => self.record(cache, operations)?,
            None => {
                operations(self, cache)?;
                Recording::Ran
            }
        };
        cache.graphs.insert(pattern.to_vec(), recording);
        Ok(())
    }

    fn embed(&mut self, table: &CudaMatrix, rows: usize, out: &mut CudaTensor) -> Result<()> {
        self.vocabulary = Some(table.shape.outputs);
        self.check_tokens()?;
        out.expect_room([rows, table.shape.inputs], "the embedding")?;
        let there_are = self.host_tokens.len().saturating_sub(self.passed);
        if rows > there_are {
            return Err(mismatch("the embedding", [rows, 1], [there_are, 1], [Element::U32; 2]));
        }
        let tokens = self.tokens.clone();
        let [values, tokens, to] = [&table.values, &tokens, &out.single].map(|buffer| self.named(buffer));
        let tokens = tokens + (self.passed * size_of::<u32>()) as CUdeviceptr;
        out.held = Element::F32;
        let [values, tokens, to] = [values, tokens, to].map(Operand::Address);
        self.launch(
            ModelKernel::Embed,
            [rows as u32, 1, 1],
            &[values, tokens, to, Operand::I32(word(table.shape.inputs)?)],
        )
    }

    fn rms_norm(
        &mut self,
        x: &CudaTensor,
        rows: usize,
        weight: &CudaVector,
        epsilon: f32,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let columns = weight.length;
        out.expect_room([rows, columns], "a norm")?;
        let operands = [
            Operand::Address(self.single(x, [rows, columns], "a norm")?),
            Operand::Address(self.named(&weight.values)),
            Operand::Address(self.product_input(out)),
            Operand::I32(word(columns)?),
            Operand::F32(epsilon),
        ];
        self.launch(ModelKernel::RmsNorm, [rows as u32, 1, 1], &operands)
    }

    fn linear(&mut self, x: &CudaTensor, rows: Range<usize>, weight: &CudaMatrix, out: &mut CudaTensor) -> Result<()> {
        self.product(x, rows, weight, out, false)
    }

    fn linear_add(&mut self, x: &CudaTensor, rows: usize, weight: &CudaMatrix, out: &mut CudaTensor) -> Result<()> {
        self.product(x, 0..rows, weight, out, true)
    }

    fn swiglu(&mut self, gate_up: &CudaTensor, rows: usize, out: &mut CudaTensor) -> Result<()> {
        let columns = out.columns;
        out.expect_room([rows, columns], "the activation")?;
        let operands = [
            Operand::Address(self.single(gate_up, [rows, 2 * columns], "the activation")?),
            Operand::Address(self.product_input(out)),
            Operand::I32(word(columns)?),
        ];
        self.launch(ModelKernel::Swiglu, [rows as u32, columns.div_ceil(BLOCK_ELEMENTS) as u32, 1], &operands)
    }

    fn attention(&mut self, cache: &mut CudaCache, layer: usize, qkv: &CudaTensor, out: &mut CudaTensor) -> Result<()> {
        let (rows, geometry) = (cache.call.rows, cache.program.plan().geometry());
        out.expect_room([rows, geometry.attended_columns()], "the attention")?;
        let projected = [rows, geometry.projected_columns()];
        let activations = [self.single(qkv, projected, "the attention")?, self.named(&out.single)];
        out.held = Element::F32;
        if cache.tiers.is_some() {
            return self.attend_over_tiers(cache, layer, activations);
        }
        cache.launches(layer).iter().try_for_each(|launch| self.launch_in(cache, launch, layer, activations))
    }

    fn block_lists(&mut self, cache: &CudaCache, layer: usize) -> Result<Option<BlockLists>> {
        if cache.record { cache.lists(layer) } else { Ok(None) }
    }

    fn read(&mut self, x: &CudaTensor, rows: usize) -> Result<Vec<f32>> {
        let count = rows.min(x.rows) * x.columns;
        match (&x.rounded, x.held) {
            (Some(rounded), Element::Bf16) => {
                Ok(rounded.read::<bf16>(0, count)?.into_iter().map(bf16::to_f32).collect())
            }
            _ => x.single.read(0, count),
        }
    }

    fn sample(&mut self, logits: &CudaTensor, sampling: &Sampling, draw: f32) -> Result<u32> {
        let count = Operand::I32(word(logits.columns.min(MAX_TOKENS))?);
        let from = Operand::Address(self.single(logits, [1, logits.columns], "sampling")?);
        let to = Operand::Address(self.chosen.address());
        if sampling.temperature > 0.0 {
            let [temperature, top_p, draw] = [sampling.temperature, sampling.top_p, draw].map(Operand::F32);
            self.launch(ModelKernel::Sample, [1, 1, 1], &[from, count, temperature, top_p, draw, to])?;
        } else {
            self.launch(ModelKernel::Argmax, [1, 1, 1], &[from, count, to])?;
        }
        Ok(self.chosen.read::<u32>(0, 1)?[0])
    }
}

/// What the compiler calls the GPU.
fn architecture(context: &CudaContext) -> Result<Architecture> {
    let (major, minor) = context.compute_capability().map_err(failed("cuDeviceGetAttribute"))?;
    Ok(Architecture::of_gpu(major.unsigned_abs(), minor.unsigned_abs()))
}
