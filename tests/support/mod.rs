//! One module for each thing that tests share.

pub mod agreement;
pub mod attention;
pub mod declaration;
pub mod emulator;
pub mod golden;
pub mod host;
pub mod nvrtc;
pub mod sample;
