//! The CPU device: f32 throughout, parallel over query blocks and heads.
//!
//! | file | what |
//! |---|---|
//! | `product` | the one product everything is made of |
//! | `linear` | linear maps, norm, activation |
//! | `queries`, `cache` | what a call brings, what a request keeps |
//! | `summaries` | what stands for a chunk's keys |
//! | `panels` | the queries of a block, what they make of keys |
//! | `halving`, `whole`, `soft` | a chunk's score by descent, as a whole, as a probability |
//! | `scan`, `select`, `masks` | one stage's scores, its cut, all stages of a call |
//! | `attend` | attention, dense or over the kept blocks |
//! | `sample`, `memory` | tokens from logits, free memory |
//!
//! Results depend neither on the number of threads nor on how many rows a call has: every sum has a fixed order.

mod attend;
mod cache;
mod halving;
mod linear;
mod masks;
mod memory;
mod panels;
mod product;
mod queries;
mod sample;
mod scan;
mod select;
mod soft;
mod summaries;
mod whole;

use std::ops::Range;
use std::sync::Arc;

use ihip_dsl::{LayerPlan, Plan};
use pulp::Arch;
use rayon::prelude::*;

use self::attend::{Attention, Keys};
pub use self::cache::CpuCache;
use self::cache::Limits;
pub use self::linear::CpuMatrix;
use self::masks::Stages;
pub(in crate::device) use self::memory::available_bytes;
use self::queries::Queries;
use super::{BlockLists, Device, Sampling};
use crate::kv::trace::PagesRead;
use crate::kv::{Allocate, Budget, Placement, Process, Tier, Traffic};
use crate::session::{Phase, SEGMENT};
use crate::{Error, Result, Step};

/// Queries of a dense layer that are computed together.
const DENSE_BLOCK: usize = 64;

/// The CPU with a number of threads of its own.
#[derive(Debug)]
pub struct CpuDevice {
    arch: Arch,
    threads: rayon::ThreadPool,
    /// Tokens of the step that is being computed.
    tokens: Vec<u32>,
    /// How many of them come before those of the call.
    passed: usize,
    /// What keys and values of a request may take.
    limits: Limits,
}

/// Activations, `[rows, columns]`.
#[derive(Debug)]
pub struct CpuTensor {
    columns: usize,
    values: Vec<f32>,
}

/// Weights of a norm.
#[derive(Debug)]
pub struct CpuVector(Vec<f32>);

impl CpuTensor {
    /// Activations with these values, row-major; as many rows as they fill.
    #[must_use]
    pub fn new(columns: usize, values: Vec<f32>) -> Self {
        Self { columns, values }
    }

    fn rows(&self, rows: Range<usize>) -> &[f32] {
        &self.values[rows.start * self.columns..rows.end * self.columns]
    }

    fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.values[..rows * self.columns]
    }
}

impl CpuDevice {
    /// The CPU with `threads` threads; 0 takes one for each core.
    ///
    /// # Errors
    /// [`Error::Threads`] where they cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let threads = pool.map_err(|source| Error::Threads { threads, source })?;
        let limits = Limits { budget: Budget::UNLIMITED, rows: SEGMENT, allocator: Arc::new(Process) };
        Ok(Self { arch: Arch::new(), threads, tokens: Vec::new(), passed: 0, limits })
    }

    /// Appends the keys and values of the step that was begun to `layer`, and attends to nothing.
    ///
    /// [`Device::attention`] does this first; alone it fills a cache with tokens whose outputs nobody needs.
    ///
    /// # Panics
    /// Where no step was begun.
    pub fn append(&mut self, cache: &mut CpuCache, layer: usize, qkv: &CpuTensor) {
        let (_, rows) = cache.step_rows();
        cache.append(layer, qkv.rows(0..rows), qkv.columns);
    }

    /// From here on, keys and values of requests lie in memory of `allocator`.
    pub fn allocate_from(&mut self, allocator: Arc<dyn Allocate>) {
        self.limits.allocator = allocator;
    }
}

impl Device for CpuDevice {
    type Tensor = CpuTensor;
    type Matrix = CpuMatrix;
    type Vector = CpuVector;
    type Cache = CpuCache;

    fn name(&self) -> String {
        match self.threads.current_num_threads() {
            1 => "cpu (1 thread)".to_owned(),
            threads => format!("cpu ({threads} threads)"),
        }
    }

    fn available_bytes(&self) -> Result<Option<u64>> {
        Ok(available_bytes())
    }

    fn matrix(&mut self, outputs: usize, inputs: usize, values: Vec<f32>) -> Result<CpuMatrix> {
        Ok(self.threads.install(|| CpuMatrix::new(outputs, inputs, &values)))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<CpuVector> {
        Ok(CpuVector(values))
    }

    fn tensor(&mut self, rows: usize, columns: usize) -> Result<CpuTensor> {
        Ok(CpuTensor::new(columns, vec![0.0; rows * columns]))
    }

    fn limit_kv(&mut self, budget: Budget, rows: usize) {
        self.limits.budget = budget;
        self.limits.rows = rows;
    }

    fn placement(&self, plan: &Plan, capacity: usize) -> Result<Placement> {
        Ok(CpuCache::placement(plan, capacity, &self.limits)?)
    }

    fn kv_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        CpuCache::kv_bytes(plan, capacity)
    }

    fn cache_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        CpuCache::other_bytes(plan, capacity) + CpuCache::tier_bytes(plan, capacity, &self.limits, Tier::Gpu)
    }

    fn host_cache_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        CpuCache::tier_bytes(plan, capacity, &self.limits, Tier::Host)
    }

    fn cache(&mut self, plan: &Arc<Plan>, capacity: usize) -> Result<CpuCache> {
        // Both tiers are the process's own memory.
        let needed = self.cache_bytes(plan, capacity) + self.host_cache_bytes(plan, capacity);
        match available_bytes() {
            Some(available) if needed > available => Err(Error::OutOfMemory {
                what: format!("the cache of {capacity} tokens"),
                device: self.name(),
                needed,
                available,
            }),
            _ => Ok(CpuCache::new(plan, capacity, &self.limits)?),
        }
    }

    fn traffic(&mut self, cache: &CpuCache) -> Result<Traffic> {
        Ok(cache.traffic())
    }

    fn residence(&mut self, cache: &CpuCache) -> Result<Placement> {
        Ok(cache.residence())
    }

    fn record_pages(&mut self, cache: &mut CpuCache, record: bool) {
        cache.record_pages(record);
    }

    fn pages_read(&mut self, cache: &CpuCache, layer: usize) -> Result<PagesRead> {
        Ok(cache.pages_read(layer))
    }

    fn record_masks(&mut self, cache: &mut CpuCache, record: bool) {
        cache.record = record;
    }

    fn begin(&mut self, cache: &mut CpuCache, step: &Step, tokens: &[u32]) -> Result<()> {
        let end = step.start + step.rows;
        if end > cache.capacity {
            let position = step.start.max(cache.capacity);
            return Err(Error::CapacityExceeded { capacity: cache.capacity, position });
        }
        cache.begin(step)?;
        self.tokens = tokens.to_vec();
        self.passed = 0;
        Ok(())
    }

    fn turn_to(&mut self, cache: &mut CpuCache, call: &Step) -> Result<()> {
        self.passed = call.start - cache.begun;
        cache.step = Some(call.clone());
        Ok(())
    }

    fn replay(
        &mut self,
        cache: &mut CpuCache,
        _step: &Step,
        operations: &mut dyn FnMut(&mut Self, &mut CpuCache) -> Result<()>,
    ) -> Result<()> {
        operations(self, cache)
    }

    fn embed(&mut self, table: &CpuMatrix, rows: usize, out: &mut CpuTensor) -> Result<()> {
        let tokens = &self.tokens[self.passed..][..rows];
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= table.outputs()) {
            return Err(Error::NoSuchToken { token, vocabulary: table.outputs() });
        }
        let columns = out.columns;
        for (token, out) in tokens.iter().zip(out.rows_mut(rows).chunks_exact_mut(columns)) {
            table.row(*token as usize, out);
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        x: &CpuTensor,
        rows: usize,
        weight: &CpuVector,
        epsilon: f32,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let (x, out) = (x.rows(0..rows), out.rows_mut(rows));
        self.threads.install(|| linear::rms_norm(self.arch, x, &weight.0, epsilon, out));
        Ok(())
    }

    fn linear(&mut self, x: &CpuTensor, rows: Range<usize>, weight: &CpuMatrix, out: &mut CpuTensor) -> Result<()> {
        let (out, x) = (out.rows_mut(rows.len()), x.rows(rows));
        self.threads.install(|| weight.apply(self.arch, x, out, |out, value| *out = value));
        Ok(())
    }

    fn linear_add(&mut self, x: &CpuTensor, rows: usize, weight: &CpuMatrix, out: &mut CpuTensor) -> Result<()> {
        let (x, out) = (x.rows(0..rows), out.rows_mut(rows));
        self.threads.install(|| weight.apply(self.arch, x, out, |out, value| *out += value));
        Ok(())
    }

    fn swiglu(&mut self, gate_up: &CpuTensor, rows: usize, out: &mut CpuTensor) -> Result<()> {
        let columns = out.columns;
        let (gate_up, out) = (gate_up.rows(0..rows), out.rows_mut(rows));
        self.threads.install(|| linear::swiglu(self.arch, gate_up, columns, out));
        Ok(())
    }

    fn attention(&mut self, cache: &mut CpuCache, layer: usize, qkv: &CpuTensor, out: &mut CpuTensor) -> Result<()> {
        self.append(cache, layer, qkv);
        let record = cache.record;
        let (plan, step) = (Arc::clone(&cache.plan), cache.step.clone().expect("append found a step"));
        let (cached, rope, masks) = cache.layer(layer);
        let geometry = plan.geometry();
        let trained = geometry.trained as usize;
        let kind = step.layer(&plan, layer);
        let queries = Queries::new(
            qkv.rows(0..step.rows),
            qkv.columns,
            (geometry.query_heads as usize, geometry.head_dim as usize),
            geometry.query_scale,
            step.start,
            kind.rotated_cache(),
            rope,
        );
        let (arch, columns, out) = (self.arch, out.columns, out.rows_mut(step.rows));
        let attention = Attention { arch, queries: &queries, cached };
        self.threads.install(|| match kind {
            LayerPlan::Dense => {
                let blocks = out.par_chunks_mut(DENSE_BLOCK * columns).enumerate();
                blocks.for_each(|(block, out)| {
                    attention.block(&queries.block(block, DENSE_BLOCK), &[Keys::All], out);
                });
            }
            LayerPlan::Pruned(pruned) => {
                let stages = Stages { arch, geometry, layer: pruned, queries: &queries, cached };
                let lists = match &step.phase {
                    Phase::Prefill => stages.prefill(step.t_max),
                    Phase::Decode { renewals } => {
                        stages.renew(masks, renewals[layer], step.t_max);
                        masks.lists.clone()
                    }
                };
                let rankings = geometry.rankings(pruned.ranking) as usize;
                let blocks = out.par_chunks_mut(pruned.query_block * columns).zip(lists.par_chunks(rankings));
                blocks.enumerate().for_each(|(block, (out, lists))| {
                    let rows = queries.block(block, pruned.query_block);
                    let positions = queries.position(rows.start)..queries.position(rows.end);
                    let keys = |list| Keys::of_block(pruned, list, positions.clone(), trained);
                    let keys: Vec<Keys> = lists.par_iter().map(keys).collect();
                    attention.block(&rows, &keys, out);
                });
                masks.recorded = if record { lists } else { Vec::new() };
            }
        });
        Ok(())
    }

    fn block_lists(&mut self, cache: &CpuCache, layer: usize) -> Result<Option<BlockLists>> {
        let Some(LayerPlan::Pruned(plan)) = cache.step.as_ref().map(|step| step.layer(&cache.plan, layer)) else {
            return Ok(None);
        };
        let rankings = cache.plan.geometry().rankings(plan.ranking) as usize;
        let mut lists = BlockLists { rankings, width: plan.keep_blocks, ..BlockLists::default() };
        for list in &cache.layers[layer].masks.recorded {
            let missing = plan.keep_blocks - list.blocks.len();
            lists.blocks.extend(list.blocks.iter().map(|left| *left as i32));
            lists.blocks.extend(std::iter::repeat_n(-1, missing));
            lists.counts.push(list.count as i32);
        }
        Ok(Some(lists))
    }

    fn read(&mut self, x: &CpuTensor, rows: usize) -> Result<Vec<f32>> {
        Ok(x.rows(0..rows).to_vec())
    }

    fn sample(&mut self, logits: &CpuTensor, sampling: &Sampling, draw: f32) -> Result<u32> {
        Ok(sample::sample(logits.rows(0..1), sampling, draw))
    }
}
