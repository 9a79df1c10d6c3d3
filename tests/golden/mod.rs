//! Every implementation against the authors' kernels.

mod emulator;
mod reference;
