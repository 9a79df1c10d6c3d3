//! A cache of which the GPU holds a part: what a step of prefill reads, and how pages move.
//!
//! While a layer of a prefill step is computed, the keys that the host has of the next one come to the GPU by copies on a
//! stream of their own, into one of two buffers that the layers take turns with. Kernels read them through a second range
//! of addresses, whose first part is the memory of the slots on the GPU. After a layer of a decoding step, that stream
//! lets pages trade slots, beside the layers that follow; a recorded graph has it as a branch. In which order, [`super::order`]
//! says.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaEvent, CudaStream};
use ihip_dsl::emit::{self, Kernel, Paging, Program, Value, tally};
use ihip_dsl::{LayerPlan, Plan};

use super::CudaDevice;
use super::cache::CudaCache;
use super::launch::Operand;
use super::ledger::Stream;
use super::memory::{Buffer, failed};
use super::order::{Action, Event, Order, Work};
use super::tally::Sums;
use crate::kv::{Kind, Reads, Row, Tier, Traffic, slot};
use crate::{Result, Step};

/// For what names none.
const NO_ACTIVATIONS: [CUdeviceptr; 2] = [0; 2];

/// What a request's cache has besides where the GPU holds a part of it.
pub(super) struct Tiers {
    pub(super) order: Order,
    /// Keys and values of each layer that is staged, as steps of prefill read them.
    copies: HashMap<usize, [Arc<Buffer>; 2]>,
    /// That keys have come to each of the two buffers, and that the layer is done that reads them.
    come: [CudaEvent; 2],
    read: [CudaEvent; 2],
    /// Bytes of keys and values that came for steps of prefill.
    streamed: u64,
    /// What kernels have counted.
    pub(super) sums: Sums,
}

impl Tiers {
    /// For a cache whose regions are `layers`.
    pub(super) fn new(stream: &Stream, paging: Paging, layers: &[[Arc<Buffer>; 2]]) -> Result<Self> {
        let order = Order::new(paging);
        let what = "copies of the key-value cache";
        let host = |kind: usize| layers[0][kind].bytes() - layers[0][kind].on_gpu();
        let buffer = |kind| Buffer::staging(stream, what, if order.staged.is_empty() { 0 } else { host(kind) });
        let (keys, values) = ([buffer(0)?, buffer(0)?], buffer(1)?);
        let join = |layer: usize, kind: usize, staging: &Option<Arc<Buffer>>| match staging {
            Some(staging) => Buffer::joined(stream, &layers[layer][kind], staging),
            // All of them are on the GPU: there is nothing to copy.
            None => Ok(layers[layer][kind].clone()),
        };
        let copy = |(turn, layer): (usize, &usize)| {
            Ok((*layer, [join(*layer, 0, &keys[turn % 2])?, join(*layer, 1, &values)?]))
        };
        let event = || stream.context().new_event(None).map_err(failed("cuEventCreate"));
        Ok(Self {
            copies: order.staged.iter().enumerate().map(copy).collect::<Result<_>>()?,
            come: [event()?, event()?],
            read: [event()?, event()?],
            streamed: 0,
            sums: Sums::new(layers.len(), order.paging.most_counted()),
            order,
        })
    }

    /// Bytes of the GPU's memory that copies take where each of `layers` layers has so many of keys and values with the
    /// host.
    pub(super) fn copy_bytes(paging: &Paging, layers: usize, [keys, values]: [usize; 2]) -> usize {
        if (0..layers).any(|layer| paging.is_staged(layer)) { 2 * keys + values } else { 0 }
    }

    const fn event(&self, event: Event) -> &CudaEvent {
        match event {
            Event::Come(buffer) => &self.come[buffer],
            Event::Read(buffer) => &self.read[buffer],
        }
    }

    /// Keys and values of a layer as a step of prefill reads them.
    pub(super) fn copy(&self, layer: usize) -> Option<&[Arc<Buffer>; 2]> {
        self.copies.get(&layer)
    }
}

/// Parts of a region of `bytes` bytes, as offset and length, that a step has to have on the GPU and the host has: what
/// earlier steps have written, sinks where the GPU has no slot for each of them, and the slot of the page that was just
/// opened, to which another may have gone.
pub(super) fn parts(program: &Program, step: &Step, pages: usize, [gpu, bytes]: [usize; 2]) -> Vec<[usize; 2]> {
    if step.start == 0 || gpu >= bytes {
        return Vec::new();
    }
    let plan = program.plan();
    let (page_tokens, page_bytes) = (plan.geometry().page as usize, Paging::page_bytes(program));
    let sinks = sink_pages(plan, pages);
    // The slot that was first of a page; pages of tokens that a step has written are nowhere else on the host.
    let first_slot = |page: usize| if page < sinks { page } else { sinks + pages - 1 - page };
    let slot = |token: usize| first_slot((token / page_tokens).min(pages - 1));
    let (written, opened) = (slot(step.start), slot(step.start + step.rows));
    let from = (written * page_bytes).max(gpu);
    // Slots of sinks lie before all others.
    let sinks = (sinks * page_bytes).clamp(gpu, from);
    let opened = [(opened * page_bytes).max(sinks), ((opened + 1) * page_bytes).min(from)];
    let parts = [[from, bytes], opened, [gpu, sinks]];
    parts.into_iter().filter(|[from, to]| from < to).map(|[from, to]| [from, to - from]).collect()
}

/// Copies keys or values of `layer` that the step at hand reads from the host; how many bytes.
fn stage(on: &CudaStream, cache: &CudaCache, tiers: &Tiers, layer: usize, kind: Kind) -> Result<u64> {
    let Some(copy) = tiers.copy(layer) else { return Ok(0) };
    let (home, copy) = (&cache.keys_and_values(layer)[kind as usize], &copy[kind as usize]);
    let mut bytes = 0;
    let pages = tiers.order.paging.slots().pages;
    for [from, length] in parts(&cache.program, &cache.step, pages, [home.on_gpu(), home.bytes()]) {
        home.copy_to(copy, from, length, on)?;
        bytes += length as u64;
    }
    Ok(bytes)
}

impl CudaDevice {
    /// The attention of a layer of a cache of two tiers; `activations` are projections and output.
    pub(super) fn attend_over_tiers(
        &mut self,
        cache: &mut CudaCache,
        layer: usize,
        activations: [CUdeviceptr; 2],
    ) -> Result<()> {
        let Some(tiers) = &cache.tiers else { return Ok(()) };
        let actions = tiers.order.attention(layer, cache.extent, [&cache.step, &cache.call]);
        let streamed = self.submit(cache, &actions, activations)?;
        if let Some(tiers) = &mut cache.tiers {
            tiers.streamed += streamed;
        }
        Ok(())
    }

    /// Hands `actions` to the streams; how many bytes they copy for a step of prefill.
    fn submit(&self, cache: &CudaCache, actions: &[Action], activations: [CUdeviceptr; 2]) -> Result<u64> {
        let Some(tiers) = &cache.tiers else { return Ok(0) };
        let [compute, copies]: [&CudaStream; 2] = [&self.stream, &self.copies];
        let mut streamed = 0;
        for Action { on, work } in actions {
            let [on, other] = match on {
                slot::Stream::Compute => [compute, copies],
                slot::Stream::Copy => [copies, compute],
            };
            match work {
                Work::Launch(layer, launch) => {
                    let (function, operands) = cache.call(launch, *layer, activations)?;
                    function.launch(on, launch.grid, &operands)?;
                }
                Work::Stage(layer, kind) => streamed += stage(on, cache, tiers, *layer, *kind)?,
                Work::Record(event) => tiers.event(*event).record(on).map_err(failed("cuEventRecord"))?,
                Work::Wait(event) => on.wait(tiers.event(*event)).map_err(failed("cuStreamWaitEvent"))?,
                Work::Join => on.join(other).map_err(failed("cuStreamWaitEvent"))?,
            }
        }
        Ok(streamed)
    }

    /// Lets what follows come after the moves of pages that were handed over.
    pub(super) fn join_moves(&self, cache: &CudaCache) -> Result<()> {
        self.submit(cache, &[Order::settled()], NO_ACTIVATIONS).map(|_| ())
    }

    /// The same at the end of a step that may be recorded.
    pub(super) fn end_moves(&self, cache: &CudaCache) -> Result<()> {
        let end = cache.tiers.as_ref().and_then(|tiers| tiers.order.ended(&cache.step));
        self.submit(cache, end.as_slice(), NO_ACTIVATIONS).map(|_| ())
    }

    /// Spoils a row where it is, so that a test can see that it would notice. Says where that was.
    ///
    /// # Errors
    /// A failed transfer.
    ///
    /// # Panics
    /// Where the cache has no such row.
    pub fn spoil(&mut self, cache: &CudaCache, row: Row) -> Result<Tier> {
        self.join_moves(cache)?;
        let geometry = cache.program.plan().geometry();
        let (page, heads) = (geometry.page as usize, geometry.kv_heads as usize);
        let slot = cache.page_table(row.layer).read::<u32>(row.token / page * size_of::<u32>(), 1)?[0] as usize;
        let page_bytes = Paging::page_bytes(&cache.program);
        let bytes = page_bytes / (page * heads);
        let at = slot * page_bytes + (row.head * page + row.token % page) * bytes;
        let region = &cache.keys_and_values(row.layer)[row.kind as usize];
        let spoilt: Vec<u8> = region.read::<u8>(at, bytes)?.into_iter().map(|byte| byte ^ 1).collect();
        region.write(at, &spoilt)?;
        Ok(if at + bytes <= region.on_gpu() { Tier::Gpu } else { Tier::Host })
    }

    /// Runs a kernel of a test over `layer` once its pages have moved: it is handed `arguments`, and behind them so many `words`,
    /// zero at first, which are returned.
    ///
    /// # Errors
    /// A kernel that does not compile or does not take that, a buffer that the layer does not have, a failed launch.
    pub fn examine(
        &mut self,
        cache: &CudaCache,
        layer: usize,
        (kernel, grid): (&Kernel, [u32; 3]),
        arguments: &[Value],
        words: usize,
    ) -> Result<Vec<u32>> {
        self.join_moves(cache)?;
        let function = self.loader.function(kernel)?;
        let found = Buffer::new(&self.stream, "what a test finds", words * size_of::<u32>(), true)?;
        let operands = arguments.iter().map(|value| cache.operand(*value, layer, NO_ACTIVATIONS));
        let operands: Vec<_> = operands.chain([Ok(Operand::Address(found.address()))]).collect::<Result<_>>()?;
        function.launch(&self.stream, grid, &operands)?;
        found.read(0, words)
    }

    /// What was counted in every layer.
    pub(super) fn tally(&self, cache: &CudaCache) -> Result<Traffic> {
        let Some(tiers) = &cache.tiers else { return Ok(Traffic::default()) };
        self.join_moves(cache)?;
        let counted = tiers.sums.with(&cache.tally_words()?);
        let page = Paging::page_bytes(&cache.program) as u64;
        let [here, keys_here, there, in_values, in_both, out_values, out_both, gathered, written_keys, written_values] =
            [
                tally::READ_HERE,
                tally::READ_KEYS_HERE,
                tally::READ_THERE,
                tally::PROMOTED_VALUES,
                tally::PROMOTED,
                tally::EVICTED_VALUES,
                tally::EVICTED,
                tally::GATHERED,
                tally::WRITTEN_KEYS,
                tally::WRITTEN_VALUES,
            ]
            .map(|word| counted[word]);
        let words = (0..cache.program.plan().most_stages().min(tally::STAGES)).map(tally::stage);
        let stages = words.map(|word| Reads { hits: counted[word], misses: counted[word + 1] }).collect();
        Ok(Traffic {
            stages,
            // A page of keys and one of values.
            attend: Reads { hits: 2 * here + keys_here, misses: keys_here + 2 * there },
            promotions: in_values + in_both,
            evictions: out_values + out_both,
            streamed_bytes: tiers.streamed + gathered * page,
            written_bytes: (written_keys + written_values) * page,
            promoted_bytes: (in_values + 2 * in_both) * page,
            evicted_bytes: (out_values + 2 * out_both) * page,
            missed_bytes: (keys_here + 2 * there) * page,
        })
    }
}

/// What `layer` has of its own besides: its page table, what its clock remembers, and what the GPU keeps of its keys.
pub(super) fn state(
    stream: &Stream,
    paging: &Paging,
    layer: usize,
    sinks: usize,
) -> Result<HashMap<emit::Buffer, Arc<Buffer>>> {
    let what = "the page tables";
    let residents = paging.residents(sinks);
    let mut table = vec![0_u32; residents.len()];
    for (slot, page) in residents.iter().enumerate() {
        table[*page as usize] = slot as u32;
    }
    let mut state = HashMap::new();
    for storage in paging.layer_state(layer) {
        state.insert(storage.buffer, Buffer::new(stream, what, storage.bytes(), storage.zeroed)?);
    }
    let values = paging.slots().values;
    state.insert(emit::Buffer::Residents, Buffer::with(stream, what, &residents[..values])?);
    state.insert(emit::Buffer::PageTable, Buffer::with(stream, what, &table)?);
    // Sinks are no victims of the first round.
    let sinks = vec![1_u32; sinks.min(values)];
    if let Some(reads) = state.get(&emit::Buffer::Reads) {
        reads.write(0, &sinks)?;
    }
    Ok(state)
}

/// Pages of sinks in the layer that has most of them, at least one and at most `pages`.
pub(super) fn sink_pages(plan: &Plan, pages: usize) -> usize {
    let sinks = plan.kinds().iter().map(|kind| match kind {
        LayerPlan::Dense => 0,
        LayerPlan::Pruned(layer) => layer.sink.div_ceil(plan.geometry().page as usize),
    });
    sinks.max().unwrap_or(0).max(1).min(pages)
}
