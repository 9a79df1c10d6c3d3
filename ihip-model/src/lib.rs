//! Llama over ihip.

pub mod chat;
mod error;
pub mod fetch;
pub mod model_file;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
pub use model_file::ModelFile;
pub use tokenizer::{Special, Tokenizer};
