//! Decoding: one query a step, and masks that are renewed less often than that (paper §3.2, appendix F).

use super::{BlockList, Problem, StageOutcome, Tensors, attend, run_stages, scan};
use crate::Renewal;

/// The masks of one layer of one request while it decodes.
#[derive(Clone, Debug, Default)]
pub struct Decode {
    /// Steps taken.
    steps: usize,
    /// Chunks that entered each stage when the stage before last ran, a list for each ranking.
    inputs: Vec<Vec<Vec<usize>>>,
    /// What the heads have scored the first stage's chunks in each ranking whose turn has come since it was last renewed.
    held: Vec<scan::Scores>,
    /// The lists in force, one for each ranking; none before the first step that renews them.
    lists: Vec<BlockList>,
}

/// What one step computed.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeStep {
    /// The stage from which the mask was renewed; `None` where the old lists were used as they were.
    pub restart: Option<usize>,
    /// The stages that ran, the first being number `restart`.
    pub stages: Vec<StageOutcome>,
    /// The lists in force, one for each ranking.
    pub lists: Vec<BlockList>,
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
    /// ran. Where no interval divides it, lists and counts stay as they were, whatever has left the window since.
    ///
    /// # Panics
    /// Where the problem has not one query, or not the shapes that [`Problem`] states.
    pub fn step(&mut self, problem: &Problem<'_>) -> DecodeStep {
        let stages = &problem.pruning.stages;
        let restart = stages.iter().position(|stage| self.steps.is_multiple_of(stage.refresh as usize));
        self.steps += 1;
        self.renew(problem, restart.into())
    }

    /// Takes a step that renews what `renewal` says, whatever the intervals say: that of a layer whose counter is ahead of
    /// the request's, or whose heads take turns.
    ///
    /// # Panics
    /// As [`Decode::step`]; where the stage before the one that `renewal` begins with never ran.
    pub fn renew(&mut self, problem: &Problem<'_>, renewal: Renewal) -> DecodeStep {
        let tensors = Tensors::new(problem);
        assert_eq!(tensors.query_count(), 1);
        // What enters the first stage follows from the number of keys; it is never cached.
        let first = scan::first_chunks(problem.pruning, problem.t_max);
        if renewal.turn.is_some() {
            let turn = renewal.heads(0, problem.kv_heads);
            self.held.resize_with(tensors.rankings(), scan::Scores::default);
            for (ranking, held) in self.held.iter_mut().enumerate() {
                // Not one after the other: heads of a ranking may be some of those whose turn it is.
                let heads = tensors.heads(ranking).filter(|head| turn.contains(&tensors.kv_head(*head)));
                held.join(scan::scan(&tensors, 0, 0..1, heads, &first));
            }
        }
        let mut outcomes = Vec::new();
        if let Some(restart) = renewal.restart {
            let inputs = match restart {
                0 => vec![first; tensors.rankings()],
                _ => self.inputs[restart].clone(),
            };
            let held = (restart == 0 && renewal.turn.is_some()).then(|| std::mem::take(&mut self.held));
            let (ran, lists) = run_stages(&tensors, restart, inputs, held);
            self.inputs.truncate(restart);
            self.inputs.extend(ran.iter().map(|stage| stage.input.clone()));
            self.lists = lists;
            outcomes = ran;
        }
        // Sinks and window are all there is where no stage ever ran.
        self.lists.resize(tensors.rankings(), BlockList::default());
        let out = attend::pruned(&tensors, &self.lists);
        DecodeStep { restart: renewal.restart, stages: outcomes, lists: self.lists.clone(), out }
    }
}
