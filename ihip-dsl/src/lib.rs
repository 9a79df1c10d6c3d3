//! The language of ihip: what a pruning pipeline is, what makes one valid, and what becomes of it.
//!
//! ```text
//! pruning! { … }  ─┬► ast ─► check ─► Pipeline ─► Plan ─► CUDA text
//! pipeline.toml   ─┘                     └─► reference (plain loops, its own arithmetic)
//! ```
//!
//! One direction, no way back: a [`Pipeline`] exists only once every rule of [`check`] has passed, and
//! nothing downstream accepts anything else. This crate knows no CUDA library and does no I/O.
#![forbid(unsafe_code)]

pub mod ast;
pub mod check;
pub mod config;
pub mod cost;
mod draft;
pub mod emit;
pub mod error;
pub mod geometry;
pub mod macro_support;
mod message;
pub mod parse;
pub mod pipeline;
pub mod plan;
mod print;
pub mod reference;
pub mod report;
pub mod rope;
pub mod words;
mod write;

pub use config::parse_toml;
pub use error::{Errors, Position, Region, Rule};
pub use geometry::{Geometry, KvType};
pub use parse::parse_str;
pub use pipeline::{
    AttendRope, Attention, ChunkScore, Descent, Halving, LayerPruning, LayerRange, Phases, Pipeline, Probe, Pruning,
    QueryReduction, Ranking, Refresh, Representative, Rope, ScanRope, Scores, Scoring, Stage,
};
pub use plan::{LayerPlan, Plan, PlanError, PrunedLayer, StagePlan};
pub use report::Report;
