//! Every test of the workspace that needs more than one crate: one binary, one link.

mod golden;
mod nvrtc;
