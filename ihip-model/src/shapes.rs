//! Models whose attention is known without their file: enough to plan a pipeline and to write its kernels.

use ihip_dsl::{Geometry, KvType};

use crate::fetch::SMOLLM2;
use crate::llama::PAGE;

/// Attention of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnownShape {
    /// What `--model` of `ihip kernels` calls it.
    pub word: &'static str,
    /// What other commands call a model of this shape, where ihip fetches one.
    pub fetched: Option<&'static str>,
    /// The model's name.
    pub name: &'static str,
    /// Whether `kernels-generated` has its kernels.
    pub published: bool,
    /// Query heads of a layer.
    pub query_heads: u32,
    /// Key-value heads of a layer.
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Layers.
    pub layers: u32,
    /// Positions that it was trained on.
    pub trained: u32,
    /// Base of the rotary angles.
    pub rope_base: f64,
}

/// Every model of a known shape.
pub const KNOWN_SHAPES: [KnownShape; 4] = [
    KnownShape {
        word: "smollm2",
        fetched: Some(SMOLLM2.name),
        name: "SmolLM2-135M",
        published: true,
        query_heads: 9,
        kv_heads: 3,
        head_dim: 64,
        layers: 30,
        trained: 8_192,
        rope_base: 100_000.0,
    },
    KnownShape {
        word: "llama-3.1-8b",
        fetched: None,
        name: "Llama-3.1-8B",
        published: true,
        query_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        layers: 32,
        trained: 131_072,
        rope_base: 500_000.0,
    },
    // Heads of other sizes.
    KnownShape {
        word: "phi-3-mini",
        fetched: None,
        name: "Phi-3-mini-4k",
        published: false,
        query_heads: 32,
        kv_heads: 32,
        head_dim: 96,
        layers: 32,
        trained: 4_096,
        rope_base: 10_000.0,
    },
    KnownShape {
        word: "gemma-2-2b",
        fetched: None,
        name: "Gemma-2-2B",
        published: false,
        query_heads: 8,
        kv_heads: 4,
        head_dim: 256,
        layers: 26,
        trained: 8_192,
        rope_base: 10_000.0,
    },
];

impl KnownShape {
    /// The shape that `--model` names, by its own word or as other commands call the model.
    #[must_use]
    pub fn named(model: &str) -> Option<&'static Self> {
        let is = |word: &str| word.eq_ignore_ascii_case(model);
        KNOWN_SHAPES.iter().find(|shape| is(shape.word) || shape.fetched.is_some_and(is))
    }

    /// Those whose kernels are published.
    pub fn published() -> impl Iterator<Item = Self> {
        KNOWN_SHAPES.into_iter().filter(|shape| shape.published)
    }

    /// What the model brings to a pipeline.
    #[must_use]
    pub fn geometry(&self, kv_type: KvType) -> Geometry {
        Geometry {
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            kv_type,
            page: PAGE,
            query_scale: (self.head_dim as f32).sqrt().recip(),
            trained: self.trained,
        }
    }

    /// Inverse frequencies of the rotary embedding without the scaling that a model's file may add: kernels read them
    /// from a buffer, and no text depends on them.
    #[must_use]
    pub fn frequencies(&self) -> Vec<f64> {
        let exponent = |pair| -2.0 * f64::from(pair) / f64::from(self.head_dim);
        (0..self.head_dim / 2).map(|pair| self.rope_base.powf(exponent(pair))).collect()
    }
}
