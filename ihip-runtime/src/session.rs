//! The schedule of one request: which positions a step computes, and from which stage its masks are renewed.

use std::sync::Arc;

use ihip_dsl::Plan;

/// Keys that the scan's grid is laid out for come in segments of this many tokens, so that any prefill chunk that
/// divides it gives the same masks.
pub const SEGMENT: usize = 8192;

/// One call of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Position of the first token.
    pub start: usize,
    /// Tokens.
    pub rows: usize,
    /// Keys that the scan's grid is laid out for (`Tmax`): the end of the segment that the step lies in.
    pub t_max: usize,
    /// Prefill or decode.
    pub phase: Phase,
}

/// What kind of step it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Prompt tokens: every stage of every block.
    Prefill,
    /// One new token.
    Decode {
        /// For each of [`Plan::kinds`]: the stage from which masks are renewed, `None` to reuse the last list.
        restart: Vec<Option<usize>>,
    },
}

/// Positions and refresh counter of one request.
#[derive(Clone, Debug)]
pub struct Session {
    plan: Arc<Plan>,
    length: usize,
    decoded: usize,
}

impl Session {
    /// A request that has seen nothing yet.
    #[must_use]
    pub fn new(plan: Arc<Plan>) -> Self {
        Self { plan, length: 0, decoded: 0 }
    }
}
