//! The language of ihip: what a pruning pipeline is, what makes one valid, and what becomes of it.
//!
//! ```text
//! pruning! { … }  ─┬► ast ─► check ─► Pipeline ─► Plan ─► CUDA text
//! pipeline.toml   ─┘                     └─► reference (plain loops, its own arithmetic)
//! ```
//!
//! The modules, in the order in which a declaration passes them:
//!
//! | step | modules |
//! |---|---|
//! | parse | [`words`] says what may stand where; [`parse`] and [`config`] make one [`ast`] of Rust tokens and of TOML |
//! | read | `draft` reads every word on its own; [`declared`] keeps them, and the parent's beside them |
//! | check | [`check`] and [`clash`] hold the rules, [`warning`] what is legal but unwise; [`error`], [`text`] and `message` word them, [`report`] shows them in a file |
//! | resolve | `resolve` fills in defaults; a [`pipeline`] comes out, which `write` and `print` say in words again |
//! | expand | [`macro_support`]: what the macro leaves in a crate |
//! | plan | [`geometry`] is the model's, `cached` how it is kept; [`plan`], [`rope`] and [`cost`] are constants, positions and bytes |
//! | emit | [`emit`] writes CUDA text; [`mod@reference`] computes the same in plain loops |
//!
//! One direction, no way back: a [`Pipeline`] exists only once every rule of [`check`] has passed, and
//! nothing downstream accepts anything else. This crate knows no CUDA library and does no I/O.
#![forbid(unsafe_code)]

pub mod ast;
mod cached;
pub mod check;
pub mod clash;
pub mod config;
pub mod cost;
pub mod declared;
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
mod renewal;
pub mod report;
mod resolve;
pub mod rope;
pub mod text;
pub mod tuning;
pub mod warning;
pub mod words;
mod write;

pub use check::Clashes;
pub use clash::Clash;
pub use config::{parse_toml, parse_toml_among};
pub use declared::Declared;
pub use error::{Errors, Position, Region, Rule};
pub use geometry::{Geometry, KvType};
pub use parse::{parse_str, parse_str_among};
pub use pipeline::{
    AttendRope, Attention, ChunkScore, Descent, Halving, LayerPruning, LayerRange, Phases, Pipeline, Probe, Pruning,
    QueryReduction, Ranking, Refresh, Representative, Rope, ScanRope, Scores, Scoring, Stage,
};
pub use plan::{LayerPlan, Plan, PlanError, PrunedLayer, StagePlan};
pub use renewal::{Renewal, Turn};
pub use report::Report;
pub use warning::Warning;
