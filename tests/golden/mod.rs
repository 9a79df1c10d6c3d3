//! Every implementation against the authors' kernels.

mod cpu;
mod reference;
