//! Llama (Touvron et al., arXiv 2302.13971; with grouped queries: arXiv 2307.09288), written once for every device.
//!
//! ```text
//! x = embedding[tokens]
//! for every layer:
//!     x += output · attention(qkv · rms_norm(x))
//!     x += down · swiglu(gate_up · rms_norm(x))
//! logits = output · rms_norm(x)
//! ```
//!
//! A step may be longer than its attention's calls. Then all of its calls go through a layer before any goes through the next:
//! only the residual stream, `x`, is as long as the step.
//!
//! Rotary positions are the attention's business: what it caches and how it rotates belongs to the pipeline, so that
//! queries and keys leave this file as they come out of their product.

use std::ops::Range;

use ihip_dsl::{Geometry, KvType};
use ihip_runtime::session::SEGMENT;
use ihip_runtime::{Device, Step};

use crate::generate::Interrupt;
use crate::weights::{Config, Layer};
use crate::{Error, ModelFile};

/// Tokens of a page of the key-value cache.
pub(crate) const PAGE: u32 = 16;

/// Rows of logits that are computed at a time: a vocabulary is far wider than a hidden state, and only scoring asks
/// for more than one row.
pub const LOGIT_ROWS: usize = 64;

/// A Llama whose weights are on a device.
pub struct Llama<D: Device> {
    config: Config,
    /// `[vocabulary, hidden]`.
    embedding: D::Matrix,
    blocks: Vec<Block<D>>,
    norm: D::Vector,
    /// `[vocabulary, hidden]`; `None` where the embedding is used for it.
    output: Option<D::Matrix>,
}

/// One layer.
struct Block<D: Device> {
    attention_norm: D::Vector,
    /// Queries, keys and values in one product, `[(query_heads + 2 · kv_heads) · head_dim, hidden]`.
    qkv: D::Matrix,
    /// `[hidden, query_heads · head_dim]`.
    attention_output: D::Matrix,
    feed_forward_norm: D::Vector,
    /// Both halves of the gated unit in one product, `[2 · feed_forward, hidden]`.
    gate_up: D::Matrix,
    /// `[hidden, feed_forward]`.
    down: D::Matrix,
}

/// Activations of one step, allocated once for the largest: a captured graph holds their addresses.
pub struct Workspace<D: Device> {
    /// Tokens of the longest step.
    rows: usize,
    /// `[rows, hidden]` of each call.
    hidden: Vec<D::Tensor>,
    /// Rows of each call of the last step.
    calls: Vec<usize>,
    /// The call whose last norm's output [`Self::normed`] is, after a step.
    normed_call: usize,
    /// `[rows, hidden]`.
    normed: D::Tensor,
    /// `[rows, (query_heads + 2 · kv_heads) · head_dim]`.
    qkv: D::Tensor,
    /// `[rows, query_heads · head_dim]`.
    attended: D::Tensor,
    /// `[rows, 2 · feed_forward]`.
    gate_up: D::Tensor,
    /// `[rows, feed_forward]`.
    gated: D::Tensor,
    /// `[LOGIT_ROWS, vocabulary]`.
    logits: D::Tensor,
}

impl<D: Device> Workspace<D> {
    /// The logits that the last step asked for, in its order from row 0.
    #[must_use]
    pub const fn logits(&self) -> &D::Tensor {
        &self.logits
    }

    /// The call that a row of the last step is of, and the rows of that call.
    ///
    /// # Panics
    /// Where the step has fewer rows.
    #[must_use]
    pub fn call_of(&self, row: usize) -> (usize, Range<usize>) {
        let mut first = 0;
        let calls = self.calls.iter().enumerate().map(|(call, rows)| {
            first += rows;
            (call, first - rows..first)
        });
        calls.into_iter().find(|(_, rows)| rows.contains(&row)).expect("a row of the step")
    }
}

impl Config {
    /// The attention's shape with a cache of `kv_type`.
    #[must_use]
    pub fn geometry(&self, kv_type: KvType) -> Geometry {
        Geometry {
            query_heads: self.query_heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            kv_type,
            page: PAGE,
            query_scale: (self.head_dim as f32).sqrt().recip(),
            trained: self.context_length as u32,
        }
    }

    /// Elements of a row of projections, and of one of the attention's output: the same for every type of the cache.
    fn columns(&self) -> [usize; 2] {
        let geometry = self.geometry(KvType::F32);
        [geometry.projected_columns(), geometry.attended_columns()]
    }

    /// Numbers in the weights of a layer.
    fn layer_parameters(&self) -> usize {
        let attention = self.hidden * self.columns().iter().sum::<usize>();
        attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
    }

    /// Numbers in all weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let vocabularies = if self.tied_output { 1 } else { 2 };
        let outer = vocabularies * self.vocabulary * self.hidden + self.hidden;
        (self.layers * self.layer_parameters() + outer) as u64
    }

    /// Bytes of the host's memory that [`Llama::load`] takes at a time: a layer, or what belongs to the vocabulary, in f32 and
    /// once more as the device wants it.
    #[must_use]
    pub fn loading_bytes(&self) -> u64 {
        2 * 4 * self.layer_parameters().max(self.vocabulary * self.hidden) as u64
    }

    /// Bytes of the activations that [`Llama::workspace`] allocates for `rows` rows.
    #[must_use]
    pub fn workspace_bytes(&self, rows: usize) -> u64 {
        let row = self.hidden + self.columns().iter().sum::<usize>() + 3 * self.feed_forward;
        4 * (rows * self.hidden + rows.min(SEGMENT) * row + LOGIT_ROWS * self.vocabulary) as u64
    }
}

impl<D: Device> Llama<D> {
    /// Dequantises the weights of `file` onto `device`; `loaded` hears the number of layers that are there.
    ///
    /// # Errors
    /// Those of [`ModelFile`], out of memory, or [`Error::Interrupted`].
    pub fn load(
        file: &ModelFile,
        device: &mut D,
        interrupt: &Interrupt,
        loaded: &mut dyn FnMut(usize),
    ) -> Result<Self, Error> {
        let config = file.config().clone();
        let vocabulary = |values| (config.vocabulary, config.hidden, values);
        let (outputs, inputs, values) = vocabulary(file.embedding()?);
        let embedding = device.matrix(outputs, inputs, values)?;
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            interrupt.check()?;
            blocks.push(Block::load(&config, file.layer(layer)?, device)?);
            loaded(layer + 1);
        }
        let norm = device.vector(file.output_norm()?)?;
        let output = match file.output()? {
            Some(values) => Some(device.matrix(config.vocabulary, config.hidden, values)?),
            None => None,
        };
        Ok(Self { config, embedding, blocks, norm, output })
    }

    /// The model's numbers.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Allocates the activations of steps of up to `rows` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn workspace(&self, device: &mut D, rows: usize) -> ihip_runtime::Result<Workspace<D>> {
        let config = &self.config;
        let (longest, calls) = (rows, rows.div_ceil(SEGMENT));
        let rows = rows.min(SEGMENT);
        let [projected, attended] = config.columns();
        Ok(Workspace {
            rows: longest,
            hidden: (0..calls).map(|_| device.tensor(rows, config.hidden)).collect::<Result<_, _>>()?,
            calls: Vec::new(),
            normed_call: 0,
            normed: device.tensor(rows, config.hidden)?,
            qkv: device.tensor(rows, projected)?,
            attended: device.tensor(rows, attended)?,
            gate_up: device.tensor(rows, 2 * config.feed_forward)?,
            gated: device.tensor(rows, config.feed_forward)?,
            logits: device.tensor(LOGIT_ROWS, config.vocabulary)?,
        })
    }

    /// Runs the `step` that `device` has begun, up to the last norm; `before_layer` may stop it at every layer.
    ///
    /// # Errors
    /// Those of the device and of `before_layer`.
    ///
    /// # Panics
    /// Where the step is longer than those that the workspace was allocated for.
    pub fn forward<E: From<ihip_runtime::Error>>(
        &self,
        device: &mut D,
        cache: &mut D::Cache,
        workspace: &mut Workspace<D>,
        step: &Step,
        before_layer: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(step.rows <= workspace.rows, "a step of {} tokens in a workspace for {}", step.rows, workspace.rows);
        let calls = step.calls();
        workspace.calls = calls.iter().map(|call| call.rows).collect();
        // A step of one call has been turned to already: what is being recorded must not contain that.
        let turn_to = |device: &mut D, cache: &mut D::Cache, call: &Step| {
            if calls.len() > 1 { device.turn_to(cache, call) } else { Ok(()) }
        };
        for (call, hidden) in calls.iter().zip(&mut workspace.hidden) {
            turn_to(device, cache, call)?;
            device.embed(&self.embedding, call.rows, hidden)?;
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            before_layer()?;
            for (number, call) in calls.iter().enumerate() {
                turn_to(device, cache, call)?;
                block.forward(device, cache, layer, workspace, number, self.config.rms_epsilon)?;
            }
        }
        self.norm(device, workspace, calls.len() - 1)?;
        Ok(())
    }

    /// The last norm of a call.
    fn norm(&self, device: &mut D, workspace: &mut Workspace<D>, call: usize) -> ihip_runtime::Result<()> {
        let Workspace { hidden, calls, normed, normed_call, .. } = workspace;
        *normed_call = call;
        device.rms_norm(&hidden[call], calls[call], &self.norm, self.config.rms_epsilon, normed)
    }

    /// Logits of `rows` of the last step, at most [`LOGIT_ROWS`] of them and all of one [call](Workspace::call_of), from row 0
    /// of [`Workspace::logits`].
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// Where the rows are others, or the last step has fewer.
    pub fn logits(&self, device: &mut D, workspace: &mut Workspace<D>, rows: Range<usize>) -> ihip_runtime::Result<()> {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let (call, of_call) = workspace.call_of(rows.start);
        assert!(rows.len() <= LOGIT_ROWS && rows.end <= of_call.end, "{rows:?} of a call's {of_call:?}");
        if call != workspace.normed_call {
            self.norm(device, workspace, call)?;
        }
        let rows = rows.start - of_call.start..rows.end - of_call.start;
        device.linear(&workspace.normed, rows, output, &mut workspace.logits)
    }
}

impl<D: Device> Block<D> {
    fn load(config: &Config, layer: Layer, device: &mut D) -> Result<Self, Error> {
        let qkv = [layer.query, layer.key, layer.value].concat();
        let gate_up = [layer.gate, layer.up].concat();
        let [projected, attended] = config.columns();
        Ok(Self {
            attention_norm: device.vector(layer.attention_norm)?,
            qkv: device.matrix(projected, config.hidden, qkv)?,
            attention_output: device.matrix(config.hidden, attended, layer.attention_output)?,
            feed_forward_norm: device.vector(layer.feed_forward_norm)?,
            gate_up: device.matrix(2 * config.feed_forward, config.hidden, gate_up)?,
            down: device.matrix(config.hidden, config.feed_forward, layer.down)?,
        })
    }

    fn forward(
        &self,
        device: &mut D,
        cache: &mut D::Cache,
        layer: usize,
        workspace: &mut Workspace<D>,
        call: usize,
        epsilon: f32,
    ) -> ihip_runtime::Result<()> {
        let Workspace { hidden, calls, normed, qkv, attended, gate_up, gated, .. } = workspace;
        let (hidden, rows) = (&mut hidden[call], calls[call]);
        device.rms_norm(hidden, rows, &self.attention_norm, epsilon, normed)?;
        device.linear(normed, 0..rows, &self.qkv, qkv)?;
        device.attention(cache, layer, qkv, attended)?;
        device.linear_add(attended, rows, &self.attention_output, hidden)?;

        device.rms_norm(hidden, rows, &self.feed_forward_norm, epsilon, normed)?;
        device.linear(normed, 0..rows, &self.gate_up, gate_up)?;
        device.swiglu(gate_up, rows, gated)?;
        device.linear_add(gated, rows, &self.down, hidden)
    }
}
