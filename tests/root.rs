//! Every test of the workspace that needs more than one crate: one binary, one link.

#![allow(unreachable_pub)]

mod golden;
mod language;
mod nvrtc;
