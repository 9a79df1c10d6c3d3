//! Every test of the workspace that needs more than one crate: one binary, one link.

#![allow(unreachable_pub)]

mod book;
mod cli;
mod coherence;
mod cpu;
mod emulator;
mod families;
mod fuzz;
mod golden;
mod gpu;
mod language;
mod model;
mod mutants;
mod nvrtc;
mod proof;
mod reference;
mod weights;

use ihip_tests::support::allocation::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
