//! One module for each thing that tests share.

pub mod agreement;
pub mod allocation;
pub mod attention;
pub mod command;
pub mod declaration;
pub mod descents;
pub mod emulator;
pub mod failing;
pub mod generation;
pub mod gguf;
pub mod golden;
pub mod host;
pub mod inputs;
pub mod layer;
pub mod model;
pub mod mutant;
pub mod nvrtc;
pub mod page;
pub mod safetensors;
pub mod sample;
pub mod tolerance;
