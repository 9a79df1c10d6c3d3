//! One attention layer on the CPU device, through the trait that models use.

use std::ops::Range;
use std::sync::Arc;

use ihip_dsl::reference::Problem;
use ihip_dsl::{Geometry, KvType, LayerPruning, Pipeline, Plan, Refresh};
use ihip_runtime::device::cpu::{CpuCache, CpuDevice, CpuTensor};
use ihip_runtime::device::{BlockLists, Device};
use ihip_runtime::kv::Traffic;
use ihip_runtime::session::Phase;
use ihip_runtime::{Result, Step};

use super::golden::Answer;

/// A layer with the cache of one request.
pub struct Layer {
    device: CpuDevice,
    cache: CpuCache,
    /// Tokens in the cache.
    length: usize,
}

/// A pipeline that does the same in every layer.
#[must_use]
pub fn pipeline(pruning: &LayerPruning) -> Pipeline {
    Pipeline::from_checked(
        "Everywhere".into(),
        "".into(),
        Refresh::Together,
        pruning.clone().into(),
        [].as_slice().into(),
    )
}

/// The shape of a problem.
#[must_use]
pub fn geometry(problem: &Problem<'_>) -> Geometry {
    Geometry {
        query_heads: problem.query_heads as u32,
        kv_heads: problem.kv_heads as u32,
        head_dim: problem.head_dim as u32,
        kv_type: KvType::F32,
        page: 16,
        query_scale: problem.query_scale,
        trained: problem.trained as u32,
    }
}

/// The plan of a problem, for one layer.
#[must_use]
pub fn plan(problem: &Problem<'_>) -> Arc<Plan> {
    let frequencies = problem.frequencies.to_vec();
    let plan = Plan::new(&pipeline(problem.pruning), geometry(problem), frequencies, 1);
    Arc::new(plan.expect("a pipeline without overrides"))
}

impl Layer {
    /// Layer 0 of `plan`, with room for `capacity` tokens, on so many threads.
    ///
    /// # Panics
    /// Where threads or memory are not to be had.
    #[must_use]
    pub fn new(plan: &Arc<Plan>, capacity: usize, threads: usize) -> Self {
        let device = CpuDevice::new(threads).expect("threads");
        Self::on(device, plan, capacity).expect("memory for a small problem")
    }

    /// The same on a device.
    ///
    /// # Errors
    /// Where the device has no room for it.
    pub fn on(mut device: CpuDevice, plan: &Arc<Plan>, capacity: usize) -> Result<Self> {
        let mut cache = device.cache(plan, capacity)?;
        device.record_masks(&mut cache, true);
        Ok(Self { device, cache, length: 0 })
    }

    /// Its keys and values.
    pub const fn cache_mut(&mut self) -> &mut CpuCache {
        &mut self.cache
    }

    /// What its cache did.
    pub fn traffic(&mut self) -> Traffic {
        self.device.traffic(&self.cache).expect("the CPU does not fail")
    }

    /// Computes the queries of a problem, after appending the keys and values that the cache still lacks.
    ///
    /// # Panics
    /// Where the problem does not fit the layer.
    pub fn call(&mut self, problem: &Problem<'_>, phase: Phase) -> Answer {
        let width = problem.query_heads * problem.head_dim;
        if self.length < problem.first_position {
            let missing = self.length..problem.first_position;
            let step = Step { start: missing.start, rows: missing.len(), t_max: problem.t_max, phase: Phase::Prefill };
            self.device.begin(&mut self.cache, &step, &vec![0; missing.len()]).expect("room for the keys");
            self.device.append(&mut self.cache, 0, &rows(problem, missing.clone(), &vec![0.0; missing.len() * width]));
        }
        let count = problem.queries.len() / width;
        let step = Step { start: problem.first_position, rows: count, t_max: problem.t_max, phase };
        self.length = step.start + step.rows;
        let qkv = rows(problem, step.start..self.length, problem.queries);
        let mut out = self.device.tensor(count, width).expect("memory for a small problem");
        self.device.begin(&mut self.cache, &step, &vec![0; count]).expect("room for the queries");
        self.device.attention(&mut self.cache, 0, &qkv, &mut out).expect("the CPU does not fail");
        let lists = self.device.block_lists(&self.cache, 0).expect("the CPU does not fail");
        Answer {
            stage_inputs: Vec::new(),
            lists: lists.map(|lists| counted(&lists)).unwrap_or_default(),
            out: self.device.read(&out, count).expect("the CPU does not fail"),
        }
    }
}

/// Rows of queries, keys and values side by side; `queries` are those of the rows alone.
fn rows(problem: &Problem<'_>, rows: Range<usize>, queries: &[f32]) -> CpuTensor {
    let (width, kv_width) = (problem.query_heads * problem.head_dim, problem.kv_heads * problem.head_dim);
    let mut values = Vec::new();
    for (row, query) in rows.zip(queries.chunks_exact(width)) {
        values.extend_from_slice(query);
        values.extend_from_slice(&problem.keys[row * kv_width..][..kv_width]);
        values.extend_from_slice(&problem.values[row * kv_width..][..kv_width]);
    }
    CpuTensor::new(width + 2 * kv_width, values)
}

fn counted(lists: &BlockLists) -> Vec<Vec<i32>> {
    let rows = lists.counts.iter().enumerate();
    rows.map(|(row, count)| lists.blocks[row * lists.width..][..*count as usize].to_vec()).collect()
}
