//! One module for each thing that tests share.

pub mod attention;
pub mod emulator;
pub mod golden;
pub mod host;
pub mod nvrtc;
pub mod sample;
