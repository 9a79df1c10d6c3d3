//! Llama over ihip.

// `pruning!` names this crate by its path, which the presets in it must be able to do as well.
extern crate self as ihip_model;

pub mod presets;
pub mod registry;

pub use ihip_dsl::{Pipeline, Pruning};
pub use ihip_macros::pruning;

/// What the expansion of `pruning!` needs; nothing else may use it.
#[doc(hidden)]
pub mod __private {
    pub use std::borrow::Cow;
    pub use std::option::Option;

    pub use ihip_dsl::{AttendRope, LayerPruning, LayerRange, Pipeline, Rope, ScanRope, Stage};
    pub use inventory;
}
