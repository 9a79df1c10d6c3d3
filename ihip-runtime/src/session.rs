//! The schedule of one request: which positions a step computes, and from which stage its masks are renewed.

use std::sync::Arc;

use ihip_dsl::{LayerPlan, Plan, Renewal, words};

use crate::{Error, Result};

/// Keys that the scan's grid is laid out for come in segments of this many tokens, so that any prefill chunk that
/// divides it gives the same masks.
pub const SEGMENT: usize = words::SEGMENT as usize;

/// A prefill chunk is a multiple of this many tokens, and of the plan's largest query block.
pub const SMALLEST_CHUNK: usize = 64;

/// Tokens of the longest prefill step. One that is longer than a segment goes through every layer segment by segment, so
/// that its masks are those of shorter steps; keys that lie with the host come to the GPU once for all of it.
pub const LONGEST_STEP: usize = 16 * SEGMENT;

/// One call of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Position of the first token.
    pub start: usize,
    /// Tokens.
    pub rows: usize,
    /// Keys that the scan's grid is laid out for (`Tmax`): the end of the segment that the step ends in.
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
        /// What each layer renews of its lists.
        renewals: Vec<Renewal>,
    },
}

impl Step {
    /// What steps that run the same operations have in common; `None` for prefill, which is not worth recording.
    #[must_use]
    pub fn graph_key(&self) -> Option<&[Renewal]> {
        match &self.phase {
            Phase::Prefill => None,
            Phase::Decode { renewals } => Some(renewals),
        }
    }

    /// The parts of the step that lie in one segment each, in order: the calls of its attention.
    #[must_use]
    pub fn calls(&self) -> Vec<Self> {
        let end = self.start + self.rows;
        let mut calls = vec![self.clone()];
        while let Some(last) = calls.last_mut()
            && segment_end(last.start) < end
        {
            last.t_max = segment_end(last.start);
            last.rows = last.t_max - last.start;
            let start = last.t_max;
            calls.push(Self { start, rows: end - start, ..self.clone() });
        }
        calls
    }

    /// What `layer` does in the phase of this step.
    #[must_use]
    pub fn layer<'p>(&self, plan: &'p Plan, layer: usize) -> &'p LayerPlan {
        match &self.phase {
            Phase::Prefill => plan.prefill(layer),
            Phase::Decode { .. } => plan.decode(layer),
        }
    }
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

    /// What is run.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Tokens that the cache holds.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Decoding steps so far: the refresh counter.
    #[must_use]
    pub fn decoded(&self) -> usize {
        self.decoded
    }

    /// Cuts the next `tokens` prompt tokens into steps of at most `chunk` tokens.
    ///
    /// Steps end at multiples of `chunk`; one that begins within a query block, after decoding, ends with it; and
    /// where query blocks shrink from stage to stage, a remainder that does not fill one is a step of its own. Query
    /// blocks, counted from the first query of a step, so are the same whatever `chunk` is.
    ///
    /// # Errors
    /// Those of [`check_chunk`].
    pub fn prefill_steps(&self, tokens: usize, chunk: usize) -> Result<Vec<Step>> {
        check_chunk(&self.plan, chunk)?;
        let (block, shrinks) = query_blocks(&self.plan);
        let end = self.length + tokens;
        let mut steps = Vec::new();
        let mut start = self.length;
        while start < end {
            let reach = if start.is_multiple_of(block) { chunk } else { block };
            let mut next = end.min((start / reach + 1) * reach);
            // Lists of larger blocks are dealt out to smaller ones from the end of a call, which must therefore not
            // have a ragged block after whole ones.
            let whole = next / block * block;
            if shrinks && whole > start {
                next = whole;
            }
            steps.push(Step { start, rows: next - start, t_max: segment_end(next - 1), phase: Phase::Prefill });
            start = next;
        }
        Ok(steps)
    }

    /// The next decoding step, one token.
    #[must_use]
    pub fn decode_step(&self) -> Step {
        let renewals = (0..self.plan.layers()).map(|layer| self.plan.renewal(layer, self.decoded)).collect();
        Step { start: self.length, rows: 1, t_max: segment_end(self.length), phase: Phase::Decode { renewals } }
    }

    /// Counts a step that was computed.
    ///
    /// # Panics
    /// Where the step does not begin at the session's length.
    pub fn advance(&mut self, step: &Step) {
        assert_eq!(step.start, self.length, "steps follow each other");
        self.length += step.rows;
        if matches!(step.phase, Phase::Decode { .. }) {
            self.decoded += 1;
        }
    }
}

/// The shortest prefill chunk of requests that run `plan`, of which all others are multiples: its largest query block, and
/// [`SMALLEST_CHUNK`] at least.
#[must_use]
pub fn shortest_chunk(plan: &Plan) -> usize {
    // Both are powers of two: the language has no other query blocks.
    query_blocks(plan).0.max(SMALLEST_CHUNK)
}

/// Fails where requests that run `plan` cannot read their prompts in steps of `chunk` tokens.
///
/// # Errors
/// [`Error::PrefillChunk`] where `chunk` is no multiple of the [`shortest_chunk`], or neither divides [`SEGMENT`] nor is a
/// multiple of it up to [`LONGEST_STEP`].
pub fn check_chunk(plan: &Plan, chunk: usize) -> Result<()> {
    let multiple = shortest_chunk(plan);
    if !is_chunk(chunk, multiple) {
        return Err(Error::PrefillChunk { chunk, multiple, segment: SEGMENT, longest: LONGEST_STEP });
    }
    Ok(())
}

/// Whether prompts can be read in steps of `chunk` tokens where these have to be a multiple of `multiple`.
#[must_use]
pub const fn is_chunk(chunk: usize, multiple: usize) -> bool {
    let whole = SEGMENT.is_multiple_of(chunk) || chunk.is_multiple_of(SEGMENT) && chunk <= LONGEST_STEP;
    chunk > 0 && chunk.is_multiple_of(multiple) && whole
}

/// Queries of the largest query block in prefill, and whether there are smaller ones besides.
fn query_blocks(plan: &Plan) -> (usize, bool) {
    let blocks = || {
        (0..plan.layers()).flat_map(|layer| match plan.prefill(layer) {
            LayerPlan::Dense => Vec::new(),
            LayerPlan::Pruned(layer) => {
                let stages = layer.stages.iter().map(|stage| stage.query_block);
                stages.chain([layer.query_block]).collect()
            }
        })
    };
    let largest = blocks().max().unwrap_or(1);
    (largest, blocks().any(|block| block != largest))
}

/// The end of the segment that `position` lies in.
pub(crate) fn segment_end(position: usize) -> usize {
    (position / SEGMENT + 1) * SEGMENT
}
