//! Helpers of more than one test module.

pub mod golden;
pub mod nvrtc;
