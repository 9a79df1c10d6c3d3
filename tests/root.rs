//! Every test of the workspace that needs more than one crate: one binary, one link.

#![allow(unreachable_pub)]

mod cli;
mod cpu;
mod emulator;
mod golden;
mod model;
mod nvrtc;
mod reference;
mod weights;
