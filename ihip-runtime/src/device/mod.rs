//! What a model asks of the thing it runs on. The operations are those of a Llama, no more.
//!
//! Tensors are row-major `[rows, columns]` with a fixed capacity of rows, allocated once: a captured graph may hold
//! their addresses. Whatever changes from step to step (tokens, positions, the grid's `t_max`, the renewals) is
//! handed over by [`Device::begin`], outside of what is recorded.

pub mod cpu;
pub mod cuda;

use std::ops::Range;
use std::sync::Arc;

use ihip_dsl::Plan;

use crate::jit::Compilations;
use crate::kv::trace::PagesRead;
use crate::kv::{Budget, Placement, PrefillMoves, Traffic};
use crate::{Result, Step};

/// A place where a model runs.
pub trait Device: Sized {
    /// Activations.
    type Tensor;
    /// Weights of a linear map, `[outputs, inputs]`.
    type Matrix;
    /// Weights of a norm.
    type Vector;
    /// Keys, values and masks of one request.
    type Cache;

    /// What it is, for people: `cpu (2 threads)`, `cuda:0 (NVIDIA H100 80GB HBM3)`.
    fn name(&self) -> String;

    /// Bytes that can still be allocated; `None` where nothing tells, and whoever asks has to go ahead without.
    ///
    /// # Errors
    /// Where the device fails to answer.
    fn available_bytes(&self) -> Result<Option<u64>>;

    /// What compiling kernels has taken since the device was opened; nothing where there are none.
    fn compilation(&self) -> Compilation {
        Compilation::default()
    }

    /// Uploads the weights of a linear map, row-major `[outputs, inputs]`.
    ///
    /// # Errors
    /// Out of memory.
    fn matrix(&mut self, outputs: usize, inputs: usize, values: Vec<f32>) -> Result<Self::Matrix>;

    /// Uploads the weights of a norm.
    ///
    /// # Errors
    /// Out of memory.
    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector>;

    /// Allocates activations.
    ///
    /// # Errors
    /// Out of memory.
    fn tensor(&mut self, rows: usize, columns: usize) -> Result<Self::Tensor>;

    /// From here on, keys and values of a request's cache take at most `budget`, and its steps have at most `rows` tokens;
    /// before, they take whatever they need on the GPU.
    fn limit_kv(&mut self, budget: Budget, rows: usize);

    /// Where a cache of `capacity` tokens has room for them.
    ///
    /// # Errors
    /// Where the budget does not hold them, with the numbers.
    fn placement(&self, plan: &Plan, capacity: usize) -> Result<Placement>;

    /// Bytes of keys and values of `capacity` tokens, wherever they lie.
    fn kv_bytes(&self, plan: &Plan, capacity: usize) -> u64;

    /// Bytes that a cache of `capacity` tokens takes of the device's memory, masks and workspace included.
    fn cache_bytes(&self, plan: &Plan, capacity: usize) -> u64;

    /// Bytes of keys and values of such a cache that lie with the host, not in the device's own memory.
    fn host_cache_bytes(&self, plan: &Plan, capacity: usize) -> u64;

    /// Bytes that move between two tiers where a prompt that fills such a cache is read in steps of `chunk` tokens.
    ///
    /// # Errors
    /// Where the budget does not hold the tokens, or the plan has no steps of that length.
    fn prefill_moves(&self, _plan: &Plan, _capacity: usize, _chunk: usize) -> Result<PrefillMoves> {
        Ok(PrefillMoves::default())
    }

    /// Begins to allocate what a cache of `capacity` tokens will have with the host, and returns at once: loading a model, for
    /// which the host keeps `beside` bytes, may go on meanwhile. [`Device::cache`] waits for the rest, and says what failed.
    /// What is prepared is given back by [`Device::limit_kv`] and for a cache that takes something else. Nothing is to be
    /// prepared on a device with one memory.
    fn prepare(&mut self, _plan: &Plan, _capacity: usize, _beside: u64) {}

    /// What allocating the part of a cache took that lies with the host; nothing where none does.
    fn host_allocation(&self, _cache: &Self::Cache) -> Option<HostAllocation> {
        None
    }

    /// Allocates the cache of one request for `capacity` tokens.
    ///
    /// # Errors
    /// Out of memory, with the numbers.
    fn cache(&mut self, plan: &Arc<Plan>, capacity: usize) -> Result<Self::Cache>;

    /// What the cache did since it was allocated.
    ///
    /// # Errors
    /// A failed transfer.
    fn traffic(&mut self, cache: &Self::Cache) -> Result<Traffic>;

    /// Where the tokens that the cache holds are now, the mean over layers.
    ///
    /// # Errors
    /// A failed transfer.
    fn residence(&mut self, cache: &Self::Cache) -> Result<Placement>;

    /// Whether the block lists of the steps to come are kept for [`Device::block_lists`]; they are not at first.
    fn record_masks(&mut self, cache: &mut Self::Cache, record: bool);

    /// Whether the pages that the decoding steps to come read are kept for [`Device::pages_read`]; they are not at first.
    fn record_pages(&mut self, cache: &mut Self::Cache, record: bool);

    /// The pages that the last decoding step read in `layer`, asked for once after each; none that are not recorded. Keys
    /// that scans alone read are among them where the device notes these.
    ///
    /// # Errors
    /// A failed transfer.
    fn pages_read(&mut self, cache: &Self::Cache, layer: usize) -> Result<PagesRead>;

    /// Starts a step: its tokens, positions and renewals go where the recorded operations read them.
    ///
    /// # Errors
    /// Where the step does not fit the cache, or the transfer fails.
    fn begin(&mut self, cache: &mut Self::Cache, step: &Step, tokens: &[u32]) -> Result<()>;

    /// Turns to one of the [calls](Step::calls) of the step that was begun, where it has several: what embeds and attends from
    /// here on does so for its rows.
    ///
    /// # Errors
    /// A failed transfer.
    fn turn_to(&mut self, cache: &mut Self::Cache, call: &Step) -> Result<()>;

    /// Runs `operations`, or replays what an earlier call with the same `step.graph_key()` recorded.
    ///
    /// # Errors
    /// Those of the operations.
    fn replay(
        &mut self,
        cache: &mut Self::Cache,
        step: &Step,
        operations: &mut dyn FnMut(&mut Self, &mut Self::Cache) -> Result<()>,
    ) -> Result<()>;

    /// `out[i] = table[token of row i]` for the call's tokens.
    ///
    /// # Errors
    /// A token beyond the table.
    fn embed(&mut self, table: &Self::Matrix, rows: usize, out: &mut Self::Tensor) -> Result<()>;

    /// `out[i] = x[i] / √(mean(x[i]²) + epsilon) · weight`.
    ///
    /// # Errors
    /// A failed launch.
    fn rms_norm(
        &mut self,
        x: &Self::Tensor,
        rows: usize,
        weight: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out[i] = weight · x[rows.start + i]`; a row's result does not depend on how many rows go with it.
    ///
    /// # Errors
    /// A failed launch.
    fn linear(
        &mut self,
        x: &Self::Tensor,
        rows: Range<usize>,
        weight: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out[i] += weight · x[i]`.
    ///
    /// # Errors
    /// A failed launch.
    fn linear_add(
        &mut self,
        x: &Self::Tensor,
        rows: usize,
        weight: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out[i][j] = silu(gate_up[i][j]) · gate_up[i][columns + j]`, where `out` has `columns` columns.
    ///
    /// # Errors
    /// A failed launch.
    fn swiglu(&mut self, gate_up: &Self::Tensor, rows: usize, out: &mut Self::Tensor) -> Result<()>;

    /// Appends the call's keys and values to `layer` and attends to it. Calls of a step follow each other in every layer.
    ///
    /// `qkv` is `[rows, (query_heads + 2 · kv_heads) · head_dim]`: queries, keys, values, heads in order, nothing
    /// rotated or scaled. `out` is `[rows, query_heads · head_dim]`.
    ///
    /// # Errors
    /// A failed launch.
    fn attention(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// The block lists with which the last call attended in `layer`; `None` for a dense layer.
    ///
    /// Only after a step whose cache records masks ([`Device::record_masks`]).
    ///
    /// # Errors
    /// A failed transfer.
    fn block_lists(&mut self, cache: &Self::Cache, layer: usize) -> Result<Option<BlockLists>>;

    /// The values of the first `rows` rows.
    ///
    /// # Errors
    /// A failed transfer.
    fn read(&mut self, x: &Self::Tensor, rows: usize) -> Result<Vec<f32>>;

    /// Draws a token from the logits in row 0. `draw` is uniform in [0, 1).
    ///
    /// # Errors
    /// A failed launch or transfer.
    fn sample(&mut self, logits: &Self::Tensor, sampling: &Sampling, draw: f32) -> Result<u32>;
}

/// Bytes of the host's memory that can still be allocated; `None` where nothing tells.
#[must_use]
pub fn host_available_bytes() -> Option<u64> {
    cpu::available_bytes()
}

/// What compiling kernels took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compilation {
    /// Wall-clock seconds, those of finding what was compiled before among them.
    pub seconds: f64,
    /// Kernels.
    pub kernels: Compilations,
}

/// What allocating the host's memory of a cache took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostAllocation {
    /// Wall-clock seconds, those beside other work among them.
    pub seconds: f64,
    /// Those for which [`Device::cache`] waited.
    pub waited: f64,
}

/// How a token is chosen from logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the largest logit, the lower token in a tie.
    pub temperature: f32,
    /// Smallest set of most likely tokens whose probabilities reach this sum, in (0, 1].
    pub top_p: f32,
}

/// Block lists of one call, in the form of the golden files.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BlockLists {
    /// Rankings of a query block: one where all query heads share its list, else as many as groups of heads do.
    pub rankings: usize,
    /// Entries a list has room for, `K_out / b_k`.
    pub width: usize,
    /// `[query_blocks, rankings, width]`: first position of every block, ascending, −1 where there is none.
    pub blocks: Vec<i32>,
    /// `[query_blocks, rankings]`: how many of them count.
    pub counts: Vec<i32>,
}
