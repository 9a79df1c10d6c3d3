//! Every implementation against the authors' kernels.

mod reference;
