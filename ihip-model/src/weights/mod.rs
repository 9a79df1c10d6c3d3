//! Llama weights from a GGUF file.
//!
//! The reader is ihip's own: candle's allocates by lengths it has not compared with the file, and brings a tensor
//! library along.

mod blocks;
mod config;
pub mod gguf;
mod malformed;

pub use blocks::Encoding;
pub use config::Config;
pub use malformed::{Malformed, Result};

use gguf::Gguf;

/// A GGUF file that is known to hold every tensor of a plain Llama in its right shape; `B` holds its bytes.
#[derive(Debug)]
pub struct Weights<B> {
    file: Gguf<B>,
    config: Config,
}

/// The tensors of one layer, row-major f32; a matrix has one row for each of its outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// RMS norm before the attention, `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// Queries, `[query_heads · head_dim][hidden]`; within a head, element `i` rotates with `i + head_dim / 2`.
    pub query: Vec<f32>,
    /// Keys, `[kv_heads · head_dim][hidden]`, in the same order of elements.
    pub key: Vec<f32>,
    /// Values, `[kv_heads · head_dim][hidden]`.
    pub value: Vec<f32>,
    /// Output of the attention, `[hidden][query_heads · head_dim]`.
    pub attention_output: Vec<f32>,
    /// RMS norm before the feed-forward layer, `[hidden]`.
    pub feed_forward_norm: Vec<f32>,
    /// The half that goes through SiLU, `[feed_forward][hidden]`.
    pub gate: Vec<f32>,
    /// The half that is multiplied with it, `[feed_forward][hidden]`.
    pub up: Vec<f32>,
    /// Output of the feed-forward layer, `[hidden][feed_forward]`.
    pub down: Vec<f32>,
}

impl<B: AsRef<[u8]>> Weights<B> {
    /// Checks directory, metadata and tensor shapes. Tensor data is not read.
    ///
    /// # Errors
    /// [`Malformed`] with the first thing that is wrong.
    pub fn parse(bytes: B) -> Result<Self> {
        let file = Gguf::parse(bytes)?;
        let config = Config::read(&file)?;
        let mut used = 0;
        for (name, wanted) in config.tensors() {
            let tensor = file.tensor(&name)?;
            if tensor.shape != wanted {
                return Err(Malformed::TensorShape {
                    name,
                    wanted,
                    found: tensor.shape.clone(),
                });
            }
            used += 1;
        }
        if file.tensors().len() > used {
            let expected: std::collections::BTreeSet<_> =
                config.tensors().map(|(name, _)| name).collect();
            let other =
                |name: &&String| !expected.contains(*name) && !Config::is_rotary_tensor(name);
            if let Some(name) = file.tensors().keys().find(other) {
                return Err(Malformed::UnexpectedTensor { name: name.clone() });
            }
        }
        Ok(Self { file, config })
    }

    /// The directory and the metadata.
    #[must_use]
    pub const fn file(&self) -> &Gguf<B> {
        &self.file
    }

    /// The model's numbers.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// One tensor by its name in the file, row-major f32. Rows of `attn_q` and `attn_k` come in half-split order:
    /// llama.cpp stores them so that elements rotated together are neighbours.
    ///
    /// # Errors
    /// [`Malformed::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.file.tensor(name)?;
        let stored = self.file.tensor_bytes(tensor);
        let row = tensor.shape[0];
        if name.ends_with(".attn_q.weight") || name.ends_with(".attn_k.weight") {
            let head_dim = self.config.head_dim;
            Ok(tensor
                .encoding
                .dequantise_rows(stored, row, |row| half_split_source(row, head_dim)))
        } else {
            Ok(tensor.encoding.dequantise_rows(stored, row, |row| row))
        }
    }

    /// The tensors of layer `index`.
    ///
    /// # Errors
    /// [`Malformed::MissingTensor`] when the model has no such layer.
    pub fn layer(&self, index: usize) -> Result<Layer> {
        let tensor = |name: &str| self.tensor(&format!("blk.{index}.{name}.weight"));
        Ok(Layer {
            attention_norm: tensor("attn_norm")?,
            query: tensor("attn_q")?,
            key: tensor("attn_k")?,
            value: tensor("attn_v")?,
            attention_output: tensor("attn_output")?,
            feed_forward_norm: tensor("ffn_norm")?,
            gate: tensor("ffn_gate")?,
            up: tensor("ffn_up")?,
            down: tensor("ffn_down")?,
        })
    }

    /// Token embeddings, `[vocabulary][hidden]`.
    ///
    /// # Errors
    /// None for a file that passed [`parse`](Self::parse).
    pub fn embedding(&self) -> Result<Vec<f32>> {
        self.tensor("token_embd.weight")
    }

    /// RMS norm after the last layer, `[hidden]`.
    ///
    /// # Errors
    /// None for a file that passed [`parse`](Self::parse).
    pub fn output_norm(&self) -> Result<Vec<f32>> {
        self.tensor("output_norm.weight")
    }

    /// Output matrix, `[vocabulary][hidden]`, or `None` where the embedding is used for it.
    ///
    /// # Errors
    /// None for a file that passed [`parse`](Self::parse).
    pub fn output(&self) -> Result<Option<Vec<f32>>> {
        if self.config.tied_output {
            Ok(None)
        } else {
            self.tensor("output.weight").map(Some)
        }
    }
}

/// Where llama.cpp puts row `row` of a projection: within a head, element `i` of half `s` is stored as `2i + s`.
const fn half_split_source(row: usize, head_dim: usize) -> usize {
    let (head, element) = (row / head_dim, row % head_dim);
    let (half, pair) = (element / (head_dim / 2), element % (head_dim / 2));
    head * head_dim + 2 * pair + half
}
