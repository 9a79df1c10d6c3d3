//! The `pruning!` macro.
#![forbid(unsafe_code)]
