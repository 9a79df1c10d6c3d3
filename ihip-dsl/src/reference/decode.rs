//! Decoding: one query a step, and masks that are renewed less often than that (paper §3.2, appendix F).

use super::{BlockList, Problem, StageOutcome, Tensors, attend, run_stages, scan};

/// The masks of one layer of one request while it decodes.
#[derive(Clone, Debug, Default)]
pub struct Decode {
    /// Steps taken.
    steps: usize,
    /// Chunks that entered each stage when the stage before last ran.
    inputs: Vec<Vec<usize>>,
    /// The list in force.
    list: BlockList,
}

/// What one step computed.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeStep {
    /// The stage from which the mask was renewed; `None` where the old list was used as it was.
    pub restart: Option<usize>,
    /// The stages that ran, the first being number `restart`.
    pub stages: Vec<StageOutcome>,
    /// The list in force.
    pub list: BlockList,
    /// `[1, query_heads, head_dim]`.
    pub out: Vec<f32>,
}

impl Decode {
    /// A request that has not decoded anything yet; prefill leaves no masks behind.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one step. The problem holds a single query.
    ///
    /// The mask is renewed from the first stage whose interval divides the number of the step, counted from 0: that
    /// stage and all after it run again with *this* query, on the chunks that entered it when the stage before last
    /// ran. Where no interval divides it, list and count stay as they were, whatever has left the window since.
    ///
    /// # Panics
    /// Where the problem has not one query, or not the shapes that [`Problem`] states.
    pub fn step(&mut self, problem: &Problem<'_>) -> DecodeStep {
        let tensors = Tensors::new(problem);
        assert_eq!(tensors.query_count(), 1);
        let stages = &problem.pruning.stages;
        let restart = stages.iter().position(|stage| self.steps.is_multiple_of(stage.refresh as usize));
        self.steps += 1;

        let mut outcomes = Vec::new();
        if let Some(restart) = restart {
            let input = match restart {
                // What enters the first stage follows from the number of keys; it is never cached.
                0 => scan::first_chunks(problem.pruning, problem.t_max),
                _ => self.inputs[restart].clone(),
            };
            let (ran, lists) = run_stages(&tensors, restart, vec![input]);
            self.inputs.truncate(restart);
            self.inputs.extend(ran.iter().map(|stage| stage.input[0].clone()));
            self.list = lists[0].clone();
            outcomes = ran;
        }
        let out = attend::pruned(&tensors, std::slice::from_ref(&self.list));
        DecodeStep { restart, stages: outcomes, list: self.list.clone(), out }
    }
}
