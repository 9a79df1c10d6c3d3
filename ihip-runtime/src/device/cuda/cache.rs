//! Keys, values, block lists and recorded graphs of one request.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::safe::CudaGraph;
use cudarc::driver::sys::CUdeviceptr;
use ihip_dsl::emit::{self, Extent, Launch, Paging, Program, Slots, Value, step};
use ihip_dsl::{LayerPlan, Renewal};

use super::allocation::Allocation;
use super::division::{extent, sizes};
use super::given::GivenLists;
use super::launch::{Function, Operand};
use super::ledger::Stream;
use super::memory::Buffer;
use super::pinned::{Ahead, Pinned};
use super::tiers::{self, Tiers};
use crate::device::{BlockLists, HostAllocation};
use crate::kv::{Budget, Placement, Probes, Tier, Tokens};
use crate::session::Phase;
use crate::{Error, Result, Step};

/// Recorded graphs that a request keeps. Patterns of renewals come back after the least common multiple of all
/// intervals: those beyond this many run unrecorded instead of filling the GPU with graphs that are hardly used.
pub(super) const MOST_GRAPHS: usize = 128;

/// Keys, values, block lists and recorded graphs of one request.
pub struct CudaCache {
    pub(super) program: Program,
    pub(super) kernels: HashMap<String, Arc<Function>>,
    pub(super) extent: Extent,
    pub(super) capacity: usize,
    /// Keys and values of each layer, `[physical page][kv_head][page token][head_dim]`.
    layers: Vec<[Arc<Buffer>; 2]>,
    /// The physical page of each logical one, where all are on the GPU; else each layer has a table of its own.
    page_table: Arc<Buffer>,
    rope_table: Arc<Buffer>,
    frequencies: Arc<Buffer>,
    /// i32 `[step::WORDS]`: what differs from step to step.
    step_words: Arc<Buffer>,
    workspace: HashMap<emit::Buffer, Arc<Buffer>>,
    /// What each layer has of its own: the block lists of the last prefill step, and what decoding keeps.
    states: Vec<HashMap<emit::Buffer, Arc<Buffer>>>,
    /// Where the GPU holds a part of it.
    pub(super) tiers: Option<Tiers>,
    /// What allocating the rest took.
    pub(super) host_allocation: HostAllocation,
    /// Lists that decoding steps attend to in place of those that their scans leave, where there are any.
    pub(super) given: Option<GivenLists>,
    /// The step at hand, and which of its calls.
    pub(super) step: Step,
    pub(super) call: Step,
    /// Whether block lists are wanted. They are there in any case: every layer has its own.
    pub(super) record: bool,
    /// Whether it is wanted which pages steps attend to.
    pub(super) record_pages: bool,
    /// What each pattern of renewals recorded, at most [`MOST_GRAPHS`] of them.
    pub(super) graphs: HashMap<Vec<Renewal>, Recording>,
}

impl fmt::Debug for CudaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaCache")
            .field("capacity", &self.capacity)
            .field("step", &self.step)
            .field("graphs", &self.graphs.len())
            .finish_non_exhaustive()
    }
}

/// What became of one pattern of renewals so far.
pub(super) enum Recording {
    /// It ran once, unrecorded: libraries load their kernels at the first launch, which no recording may contain.
    Ran,
    /// It can be replayed.
    Recorded {
        graph: CudaGraph,
        /// Every buffer that the graph names.
        _buffers: Vec<Arc<Buffer>>,
    },
}

/// What the memory is for that a cache allocates.
const WHAT: &str = "the key-value cache";

/// So many bytes of the host's memory for a cache.
pub(super) fn host_memory(stream: &Stream, bytes: usize) -> Result<Allocation> {
    Allocation::new(stream, Tier::Host, WHAT, bytes)
}

/// Bytes of each of these that a cache of `capacity` tokens takes, in order.
///
/// # Errors
/// Those of the driver.
pub(super) fn with_host(stream: &Stream, program: &Program, capacity: usize, budget: Budget) -> Result<Vec<usize>> {
    let sizes = sizes(program, extent(capacity), capacity);
    let on_gpu = sizes.divide(program, budget).on_gpu;
    let layer = on_gpu.map(|on_gpu| Buffer::with_host(stream, [on_gpu, sizes.region]));
    let layer: Vec<usize> = layer.into_iter().collect::<Result<_>>()?;
    Ok(layer.into_iter().filter(|bytes| *bytes > 0).collect::<Vec<_>>().repeat(program.plan().layers()))
}

impl CudaCache {
    /// Takes the host's memory from what was allocated `ahead`, if any.
    pub(super) fn new(
        stream: &Stream,
        (program, paging): (Program, Option<Paging>),
        kernels: HashMap<String, Arc<Function>>,
        capacity: usize,
        budget: Budget,
        ahead: Option<Ahead<Allocation>>,
    ) -> Result<Self> {
        let plan = program.plan();
        let extent = extent(capacity);
        let sizes = sizes(&program, extent, capacity);
        let on_gpu = sizes.divide(&program, budget).on_gpu;
        let allocate = |bytes, zeroed| Buffer::new(stream, WHAT, bytes, zeroed);
        let allocate_all = |storage: &[emit::Storage]| {
            storage
                .iter()
                .map(|storage| Ok((storage.buffer, allocate(storage.bytes(), storage.zeroed)?)))
                .collect::<Result<HashMap<_, _>>>()
        };
        let host_memory = |bytes| host_memory(stream, bytes);
        let mut pinned = Pinned::new(ahead, &host_memory);
        let mut region = |on_gpu| Buffer::tiered(stream, WHAT, [on_gpu, sizes.region], &mut pinned);
        let mut regions = || Ok([region(on_gpu[0])?, region(on_gpu[1])?]);
        let layers: Vec<_> = (0..plan.layers()).map(|_| regions()).collect::<Result<_>>()?;
        let mut states: Vec<_> = sizes.states.iter().map(|storage| allocate_all(storage)).collect::<Result<_>>()?;
        let table: Vec<u32> = (0..sizes.pages as u32).collect();
        let sinks = tiers::sink_pages(plan, sizes.pages);
        let tiers = paging.map(|paging| {
            for (layer, state) in states.iter_mut().enumerate() {
                state.extend(tiers::state(stream, &paging, layer, sinks)?);
            }
            Tiers::new(stream, paging, &layers)
        });
        let tiers = tiers.transpose()?;
        let nothing = Step { start: 0, rows: 0, t_max: 0, phase: Phase::Prefill };
        Ok(Self {
            page_table: Buffer::with(stream, WHAT, &table)?,
            rope_table: Buffer::with(stream, WHAT, &rope_table(plan.frequencies(), sizes.rope_positions))?,
            frequencies: Buffer::with(stream, WHAT, plan.frequencies())?,
            step_words: allocate(step::WORDS * size_of::<i32>(), true)?,
            workspace: allocate_all(&sizes.workspace)?,
            tiers,
            host_allocation: pinned.took(),
            layers,
            states,
            given: None,
            step: nothing.clone(),
            call: nothing,
            record: false,
            record_pages: false,
            graphs: HashMap::new(),
            program,
            kernels,
            extent,
            capacity,
        })
    }

    /// Puts a step's positions where the kernels read them.
    pub(super) fn begin(&mut self, step: &Step) -> Result<()> {
        if step.start + step.rows > self.capacity {
            let position = step.start.max(self.capacity);
            return Err(Error::CapacityExceeded { capacity: self.capacity, position });
        }
        self.step = step.clone();
        self.turn_to(step)
    }

    /// The same for one call of the step.
    pub(super) fn turn_to(&mut self, call: &Step) -> Result<()> {
        let word = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
        let mut words = [0_i32; step::WORDS];
        words[step::START] = word(call.start);
        words[step::ROWS] = word(call.rows);
        words[step::T_MAX] = word(call.t_max);
        words[step::BEGIN] = word(self.step.start);
        words[step::END] = word(self.step.start + self.step.rows);
        self.step_words.write(0, &words)?;
        self.call = call.clone();
        Ok(())
    }

    /// Where the tokens are that are written, the mean over layers.
    pub(super) fn residence(&self) -> Result<Placement> {
        let length = self.step.start + self.step.rows;
        let Some(tiers) = &self.tiers else {
            let all = Tokens { gpu: length, host: 0 };
            return Ok(Placement { keys: all, values: all, probes: Probes::default() });
        };
        let Slots { pages, keys, values } = tiers.order.paging.slots();
        let page = self.program.plan().geometry().page as usize;
        let written = length.div_ceil(page).min(pages);
        let mut here = [0; 2];
        for layer in 0..self.layers.len() {
            let table: Vec<u32> = self.page_table(layer).read(0, written)?;
            for (here, slots) in here.iter_mut().zip([keys, values]) {
                *here += table.iter().filter(|slot| (**slot as usize) < slots).count();
            }
        }
        let [keys, values] = here.map(|pages| {
            let gpu = (pages * page / self.layers.len()).min(length);
            Tokens { gpu, host: length - gpu }
        });
        let (levels, tokens) = (self.program.levels(), pages * page);
        let probes = Probes { levels, bytes: self.program.probe_bytes(levels, tokens) as u64 };
        Ok(Placement { keys, values, probes })
    }

    /// Keys and values of `layer`.
    pub(super) fn keys_and_values(&self, layer: usize) -> &[Arc<Buffer>; 2] {
        &self.layers[layer]
    }

    /// The launches of the call at hand in `layer`.
    pub(super) fn launches(&self, layer: usize) -> Vec<Launch> {
        self.launches_of(&self.call, layer)
    }

    /// The launches of a step in `layer`.
    pub(super) fn launches_of(&self, step: &Step, layer: usize) -> Vec<Launch> {
        if let Some(tiers) = &self.tiers {
            return tiers.order.launches(layer, self.extent, step);
        }
        match &step.phase {
            Phase::Prefill => self.program.prefill(layer, self.extent, step.rows, step.t_max),
            Phase::Decode { renewals } => self.program.decode(layer, self.extent, renewals[layer]),
        }
    }

    /// What a value of the launch list stands for in `layer`.
    pub(super) fn operand(&self, value: Value, layer: usize, [qkv, out]: [CUdeviceptr; 2]) -> Result<Operand> {
        let (buffer, behind) = match value {
            Value::I32(value) => return Ok(Operand::I32(value)),
            Value::Buffer(buffer) => (buffer, 0),
            Value::Part(buffer, behind) => (buffer, behind as CUdeviceptr),
        };
        let address = match buffer {
            emit::Buffer::Step => self.step_words.address(),
            emit::Buffer::Qkv => qkv,
            emit::Buffer::Out => out,
            emit::Buffer::Keys => self.layers[layer][0].address(),
            emit::Buffer::Values => self.layers[layer][1].address(),
            emit::Buffer::PageTable => self.page_table(layer).address(),
            emit::Buffer::StagedKeys | emit::Buffer::StagedValues => {
                let copy = self.tiers.as_ref().and_then(|tiers| tiers.copy(layer));
                let copy = copy.ok_or_else(|| Error::NotInPlan { name: format!("buffer {buffer:?}") })?;
                copy[usize::from(buffer == emit::Buffer::StagedValues)].address()
            }
            emit::Buffer::RopeTable => self.rope_table.address(),
            emit::Buffer::Frequencies => self.frequencies.address(),
            other => self.states[layer]
                .get(&other)
                .or_else(|| self.workspace.get(&other))
                .ok_or_else(|| Error::NotInPlan { name: format!("buffer {other:?}") })?
                .address(),
        };
        Ok(Operand::Address(address + behind))
    }

    /// The kernel of a launch, and what it is handed in `layer`; `activations` are projections and output.
    pub(super) fn call(
        &self,
        launch: &Launch,
        layer: usize,
        activations: [CUdeviceptr; 2],
    ) -> Result<(&Function, Vec<Operand>)> {
        let function = self.kernels.get(&launch.kernel);
        let function = function.ok_or_else(|| Error::NotInPlan { name: format!("kernel {}", launch.kernel) })?;
        let operands = launch.arguments.iter().enumerate().map(|(index, value)| {
            let given = self.given.as_ref().filter(|_| function.reads(index));
            match given.and_then(|given| given.operand(*value, layer)) {
                Some(operand) => Ok(operand),
                None => self.operand(*value, layer, activations),
            }
        });
        Ok((function, operands.collect::<Result<_>>()?))
    }

    /// The physical page of each logical one in `layer`.
    pub(super) fn page_table(&self, layer: usize) -> &Buffer {
        self.states[layer].get(&emit::Buffer::PageTable).unwrap_or(&self.page_table)
    }

    /// A buffer of which `layer` has its own.
    pub(super) fn own(&self, layer: usize, buffer: emit::Buffer) -> Result<&Buffer> {
        let own = self.states[layer].get(&buffer);
        own.map(Arc::as_ref).ok_or_else(|| Error::NotInPlan { name: format!("buffer {buffer:?}") })
    }

    /// Every buffer that a recorded step may name.
    pub(super) fn buffers(&self) -> Vec<Arc<Buffer>> {
        let shared = [&self.page_table, &self.rope_table, &self.frequencies, &self.step_words];
        shared
            .into_iter()
            .chain(self.layers.iter().flatten())
            .chain(self.workspace.values())
            .chain(self.states.iter().flat_map(HashMap::values))
            .chain(self.given.iter().map(GivenLists::words))
            .cloned()
            .collect()
    }

    /// The lists with which the last call attended in `layer`; `None` where the layer keeps none, or
    /// attended to every key.
    pub(super) fn lists(&self, layer: usize) -> Result<Option<BlockLists>> {
        let LayerPlan::Pruned(pruned) = self.call.layer(self.program.plan(), layer) else { return Ok(None) };
        let (names, blocks) = match &self.call.phase {
            Phase::Prefill if self.program.begins_densely(layer, self.call.t_max) => return Ok(None),
            Phase::Prefill => {
                ([emit::Buffer::Blocks, emit::Buffer::Counts], self.call.rows.div_ceil(pruned.query_block))
            }
            Phase::Decode { .. } => ([emit::Buffer::CachedBlocks, emit::Buffer::CachedCount], 1),
        };
        let rankings = self.program.plan().geometry().rankings(pruned.ranking) as usize;
        if pruned.stages.is_empty() {
            return Ok(Some(BlockLists { rankings: 1, width: 0, blocks: Vec::new(), counts: vec![0; blocks] }));
        }
        let read = |name, count| self.own(layer, name)?.read::<i32>(0, count);
        Ok(Some(BlockLists {
            rankings,
            width: pruned.keep_blocks,
            blocks: read(names[0], blocks * rankings * pruned.keep_blocks)?,
            counts: read(names[1], blocks * rankings)?,
        }))
    }
}

/// Cosine and sine of every position's angles, `[positions][head_dim / 2]`.
fn rope_table(frequencies: &[f64], positions: usize) -> Vec<[f32; 2]> {
    (0..positions)
        .flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency))
        .map(|angle| [angle.cos() as f32, angle.sin() as f32])
        .collect()
}
