//! One module for each thing that tests share.

pub mod emulator;
pub mod gguf;
pub mod golden;
pub mod model;
pub mod nvrtc;
