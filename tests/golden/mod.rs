//! Every implementation against the authors' kernels.

mod cpu;
mod emulator;
mod reference;
