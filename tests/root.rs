//! Every test of the workspace that needs more than one crate: one binary, one link.

#![allow(unreachable_pub)]

mod emulator;
mod golden;
mod language;
mod nvrtc;
mod reference;
