//! One module for each thing that tests share.

pub mod golden;
pub mod nvrtc;
