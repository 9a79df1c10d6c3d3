//! In which order a cache is worked on of which the GPU holds a part: what goes to which of two streams, and what waits
//! for what.
//!
//! Plain data: [`super::tiers`] hands it to the driver as it is, and `races` shows that whatever order it leaves open makes
//! no difference.

use ihip_dsl::Renewal;
use ihip_dsl::emit::{Extent, Launch, Paging};

use crate::Step;
use crate::kv::Kind;
use crate::kv::slot::Stream;
use crate::session::Phase;

/// A point in a stream that the other one waits for. There are two of each: one for each buffer that keys are staged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// Keys have come to the buffer.
    Come(usize),
    /// The layer is done that reads them.
    Read(usize),
}

/// What a stream is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A kernel over what a layer has.
    Launch(usize, Launch),
    /// A copy of what the host has of a layer's keys, or of its values, to where a step of prefill reads them.
    Stage(usize, Kind),
    /// The event happens once everything is done that the stream was handed before.
    Record(Event),
    /// Nothing until the event has happened that was recorded last.
    Wait(Event),
    /// Nothing until everything is done that the other stream was handed before.
    Join,
}

/// What is handed over, and to which stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) on: Stream,
    pub(super) work: Work,
}

/// In which order the steps of a request are handed over.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) paging: Paging,
    /// Layers of which steps of prefill read a copy, in order. They take turns with two buffers for keys.
    pub(super) staged: Vec<usize>,
    /// Whether decoding steps move pages.
    promotes: bool,
}

impl Order {
    pub(super) fn new(paging: Paging) -> Self {
        let layers = paging.program().plan().layers();
        let staged = (0..layers).filter(|layer| paging.is_staged(*layer)).collect();
        let promotes = (0..layers).any(|layer| !paging.promote(layer, Renewal::default()).is_empty());
        Self { paging, staged, promotes }
    }

    /// The launches of a call in `layer`, whatever else there is to do.
    pub(super) fn launches(&self, layer: usize, extent: Extent, call: &Step) -> Vec<Launch> {
        match &call.phase {
            Phase::Prefill => self.paging.prefill(layer, extent, call.rows, call.t_max),
            Phase::Decode { renewals } => self.paging.decode(layer, extent, renewals[layer]),
        }
    }

    /// The attention of `layer` in one call of a step.
    pub(super) fn attention(&self, layer: usize, extent: Extent, [step, call]: [&Step; 2]) -> Vec<Action> {
        let launches = launched(Stream::Compute, layer, self.launches(layer, extent, call));
        match &call.phase {
            Phase::Prefill => {
                let end = |step: &Step| step.start + step.rows;
                let mut actions =
                    if call.start == step.start { self.before_prefill(layer, call.t_max) } else { Vec::new() };
                actions.extend(launches);
                // What comes to the buffer next in this step waits for it.
                let turn = self.turn(layer).filter(|turn| end(call) == end(step) && turn + 2 < self.staged.len());
                actions.extend(turn.map(|turn| on(Stream::Compute, Work::Record(Event::Read(turn % 2)))));
                actions
            }
            Phase::Decode { renewals } => {
                let mut actions: Vec<Action> = launches.collect();
                let moves = self.paging.promote(layer, renewals[layer]);
                if !moves.is_empty() {
                    actions.push(on(Stream::Copy, Work::Join));
                    actions.extend(launched(Stream::Copy, layer, moves));
                }
                actions
            }
        }
    }

    /// Which of the layers that are staged `layer` is; its keys come to buffer `turn % 2`.
    pub(super) fn turn(&self, layer: usize) -> Option<usize> {
        self.staged.iter().position(|staged| *staged == layer)
    }

    /// What comes before the first call of a prefill step in `layer`, which is laid out for `t_max` keys.
    fn before_prefill(&self, layer: usize, t_max: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        if layer == 0 {
            // No page moves once keys are on their way.
            let layers = 0..self.paging.program().plan().layers();
            actions.extend(layers.flat_map(|layer| launched(Stream::Compute, layer, self.paging.claim())));
            actions.push(on(Stream::Copy, Work::Join));
        }
        let Some(turn) = self.turn(layer) else { return actions };
        let due = if turn == 0 { 0..2 } else { turn + 1..turn + 2 };
        for ahead in due {
            let Some(&layer) = self.staged.get(ahead) else { continue };
            // Nobody reads what is to come to the buffers first: the streams were joined.
            if ahead > 1 {
                actions.push(on(Stream::Copy, Work::Wait(Event::Read(ahead % 2))));
            }
            actions.push(on(Stream::Copy, Work::Stage(layer, Kind::Keys)));
            actions.push(on(Stream::Copy, Work::Record(Event::Come(ahead % 2))));
        }
        actions.push(on(Stream::Compute, Work::Wait(Event::Come(turn % 2))));
        if self.paging.has_staged_values(layer, t_max) {
            actions.push(on(Stream::Compute, Work::Stage(layer, Kind::Values)));
        }
        actions
    }

    /// Lets what follows come after the moves of pages that were handed over: the next step, which is needed where this one is not
    /// [recorded](Self::ended), and whatever looks at pages, at where they are, or at what was counted.
    pub(super) const fn settled() -> Action {
        on(Stream::Compute, Work::Join)
    }

    /// The same at the end of a step that may be recorded: a branch that was not begun cannot be joined there.
    pub(super) fn ended(&self, step: &Step) -> Option<Action> {
        (self.promotes && matches!(step.phase, Phase::Decode { .. })).then(Self::settled)
    }
}

const fn on(stream: Stream, work: Work) -> Action {
    Action { on: stream, work }
}

fn launched(stream: Stream, layer: usize, launches: Vec<Launch>) -> impl Iterator<Item = Action> {
    launches.into_iter().map(move |launch| on(stream, Work::Launch(layer, launch)))
}
