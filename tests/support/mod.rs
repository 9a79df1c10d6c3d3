//! One module for each thing that tests share.

pub mod emulator;
pub mod golden;
pub mod nvrtc;
