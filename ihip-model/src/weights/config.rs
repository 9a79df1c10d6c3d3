//! The numbers of a Llama, from the metadata of its file.

use super::blocks::Encoding;
use super::gguf::Gguf;
use super::malformed::{Malformed, Result};

/// Shape and constants of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Elements of a token's hidden state.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub query_heads: usize,
    /// Key-value heads of a layer; divides `query_heads`.
    pub kv_heads: usize,
    /// Elements of one head, even.
    pub head_dim: usize,
    /// Elements between the two halves of the feed-forward layer.
    pub feed_forward: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Positions that the model was trained on.
    pub context_length: usize,
    /// What RMS normalisation adds to the mean square.
    pub rms_epsilon: f32,
    /// Whether the embedding is also the output matrix.
    pub tied_output: bool,
    /// Base of the rotary angles.
    pub rope_base: f64,
    /// What each of the `head_dim / 2` inverse frequencies is divided by.
    rope_factors: Vec<f32>,
}

const ARCHITECTURE: &str = "general.architecture";
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// No Llama comes near these; they keep products of them within a usize.
const MAX_LAYERS: usize = 1 << 12;
const MAX_EXTENT: usize = 1 << 24;

impl Config {
    pub(super) fn read<B: AsRef<[u8]>>(file: &Gguf<B>) -> Result<Self> {
        let architecture = required(ARCHITECTURE, file.string(ARCHITECTURE)?)?;
        if architecture != "llama" {
            return Err(Malformed::Architecture {
                architecture: architecture.into(),
            });
        }
        if let Some(experts @ 1..) = file.unsigned("llama.expert_count")? {
            return Err(Malformed::KeyRange {
                key: "llama.expert_count".into(),
                value: experts as f64,
                wanted: "0: a mixture of experts is not run",
            });
        }
        let hidden = extent(file, "llama.embedding_length", None)?;
        let query_heads = extent(file, "llama.attention.head_count", None)?;
        let kv_heads = extent(file, "llama.attention.head_count_kv", Some(query_heads))?;
        multiple(("head_count", query_heads), ("head_count_kv", kv_heads))?;
        let key_length = "llama.attention.key_length";
        let head_dim = match file.unsigned(key_length)? {
            Some(_) => extent(file, key_length, None)?,
            None => {
                multiple(("embedding_length", hidden), ("head_count", query_heads))?;
                hidden / query_heads
            }
        };
        multiple(
            ("the head dimension", head_dim),
            ("the number of elements a rotation takes", 2),
        )?;
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            let extent = extent(file, key, Some(head_dim))?;
            if extent != head_dim {
                return Err(Malformed::KeyRange {
                    key: key.into(),
                    value: extent as f64,
                    wanted: "equal to the head dimension",
                });
            }
        }
        let embedding = file.tensor("token_embd.weight")?;
        let &[_, vocabulary] = embedding.shape.as_slice() else {
            return Err(Malformed::TensorShape {
                name: "token_embd.weight".into(),
                wanted: vec![hidden, 0],
                found: embedding.shape.clone(),
            });
        };
        Ok(Self {
            hidden,
            layers: bounded(
                file,
                "llama.block_count",
                None,
                MAX_LAYERS,
                "between 1 and 4096",
            )?,
            query_heads,
            kv_heads,
            head_dim,
            feed_forward: extent(file, "llama.feed_forward_length", None)?,
            vocabulary,
            context_length: bounded(
                file,
                "llama.context_length",
                None,
                u32::MAX as usize,
                "at least 1",
            )?,
            rms_epsilon: positive(file, "llama.attention.layer_norm_rms_epsilon", None)? as f32,
            tied_output: !file.tensors().contains_key("output.weight"),
            rope_base: positive(file, "llama.rope.freq_base", Some(10_000.0))?,
            rope_factors: rope_factors(file, head_dim / 2)?,
        })
    }

    /// Inverse frequencies of the rotary embedding, in radians a position: `head_dim / 2` of them, the fastest first,
    /// with the file's scaling applied. Element `i` rotates with element `i + head_dim / 2`.
    #[must_use]
    pub fn frequencies(&self) -> Vec<f64> {
        let exponent = |pair: usize| -2.0 * pair as f64 / self.head_dim as f64;
        let scaled = |(pair, factor): (usize, &f32)| {
            self.rope_base.powf(exponent(pair)) / f64::from(*factor)
        };
        self.rope_factors.iter().enumerate().map(scaled).collect()
    }

    /// Every tensor of the model with its shape, fastest-varying extent first.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.feed_forward);
        let (queries, keys) = (
            self.query_heads * self.head_dim,
            self.kv_heads * self.head_dim,
        );
        let layer = [
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, queries]),
            ("attn_k", vec![hidden, keys]),
            ("attn_v", vec![hidden, keys]),
            ("attn_output", vec![queries, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, inner]),
            ("ffn_up", vec![hidden, inner]),
            ("ffn_down", vec![inner, hidden]),
        ];
        let layers = (0..self.layers).flat_map(move |index| {
            layer
                .clone()
                .map(|(name, shape)| (format!("blk.{index}.{name}.weight"), shape))
        });
        let output =
            (!self.tied_output).then(|| ("output.weight".into(), vec![hidden, self.vocabulary]));
        let ends = [
            ("token_embd.weight".into(), vec![hidden, self.vocabulary]),
            ("output_norm.weight".into(), vec![hidden]),
        ];
        ends.into_iter().chain(output).chain(layers)
    }

    /// Whether a file may hold this tensor besides those of the model.
    pub(super) fn is_rotary_tensor(name: &str) -> bool {
        name == ROPE_FACTORS || name.ends_with(".attn_rot_embd")
    }
}

pub(super) fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Malformed::MissingKey { key: key.into() })
}

fn bounded<B: AsRef<[u8]>>(
    file: &Gguf<B>,
    key: &str,
    default: Option<usize>,
    most: usize,
    wanted: &'static str,
) -> Result<usize> {
    let number = required(key, file.unsigned(key)?.or(default))?;
    if (1..=most).contains(&number) {
        Ok(number)
    } else {
        Err(Malformed::KeyRange {
            key: key.into(),
            value: number as f64,
            wanted,
        })
    }
}

fn extent<B: AsRef<[u8]>>(file: &Gguf<B>, key: &str, default: Option<usize>) -> Result<usize> {
    bounded(file, key, default, MAX_EXTENT, "between 1 and 16777216")
}

fn positive<B: AsRef<[u8]>>(file: &Gguf<B>, key: &str, default: Option<f64>) -> Result<f64> {
    let number = required(key, file.float(key)?.or(default))?;
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        Err(Malformed::KeyRange {
            key: key.into(),
            value: number,
            wanted: "a positive number",
        })
    }
}

fn multiple(
    (a, a_value): (&'static str, usize),
    (b, b_value): (&'static str, usize),
) -> Result<()> {
    if a_value.is_multiple_of(b_value) {
        Ok(())
    } else {
        Err(Malformed::Inconsistent {
            a,
            a_value,
            b,
            b_value,
            rule: "the first should be a multiple of the second",
        })
    }
}

/// Llama 3 ships its scaling as a tensor of factors; linear scaling is one factor for all pairs.
fn rope_factors<B: AsRef<[u8]>>(file: &Gguf<B>, pairs: usize) -> Result<Vec<f32>> {
    let linear = match file.string("llama.rope.scaling.type")? {
        None => positive(file, "llama.rope.scale_linear", Some(1.0))?,
        Some("none") => 1.0,
        Some("linear") => positive(file, "llama.rope.scaling.factor", None)?,
        Some(scaling) => {
            return Err(Malformed::RopeScaling {
                scaling: scaling.into(),
            });
        }
    };
    let mut factors = vec![1.0; pairs];
    if let Some(tensor) = file.tensors().get(ROPE_FACTORS) {
        if tensor.shape != [pairs] || tensor.encoding != Encoding::F32 {
            return Err(Malformed::TensorShape {
                name: ROPE_FACTORS.into(),
                wanted: vec![pairs],
                found: tensor.shape.clone(),
            });
        }
        tensor
            .encoding
            .dequantise(file.tensor_bytes(tensor), &mut factors);
    }
    for factor in &mut factors {
        *factor *= linear as f32;
        if !factor.is_finite() || *factor <= 0.0 {
            return Err(Malformed::KeyRange {
                key: ROPE_FACTORS.into(),
                value: f64::from(*factor),
                wanted: "positive numbers",
            });
        }
    }
    Ok(factors)
}
