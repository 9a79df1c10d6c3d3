//! Every test of the workspace that needs more than one crate: one binary, one link.

#![allow(unreachable_pub)]

mod book;
mod cli;
mod cpu;
mod emulator;
mod families;
mod golden;
mod gpu;
mod language;
mod model;
mod nvrtc;
mod reference;
mod weights;
