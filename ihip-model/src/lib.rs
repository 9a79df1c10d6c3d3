//! Llama over ihip: a model file, its tokenizer, pipelines by name, and text out of them.

// `pruning!` names this crate by its path, which the presets in it must be able to do as well.
extern crate self as ihip_model;

pub mod chat;
pub mod cli;
mod error;
pub mod export;
pub mod fetch;
pub mod gallery;
pub mod generate;
pub mod llama;
pub mod model_file;
pub mod presets;
pub mod registry;
pub mod shapes;
pub mod stats;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
pub use generate::{Generation, Interrupt, Sampler};
pub use ihip_dsl::{Pipeline, Pruning};
pub use ihip_macros::pruning;
pub use llama::Llama;
pub use model_file::ModelFile;
pub use tokenizer::{Special, Tokenizer};

/// What the expansion of `pruning!` needs; nothing else may use it.
#[doc(hidden)]
pub mod __private {
    pub use std::borrow::Cow;
    pub use std::sync::LazyLock;

    pub use ihip_dsl::{Clash, Clashes, declared};
    pub use inventory;
}
