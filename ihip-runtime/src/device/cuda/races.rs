//! That whatever order [`Order`] leaves open between the two streams makes no difference: no two works that may run at the
//! same time touch the same place, one of them writing.
//!
//! A world is a pipeline's launches over places of memory. What a kernel reads and what it writes are the arguments that it declares: `const`
//! in its text where it does not write. Every sequence of a few operations of a request is handed to [`Clocks`], steps of
//! prefill that are given up at any layer among them, and decoding steps that are recorded and that are not. Then every
//! event, wait and join is left out in turn, and something has to go wrong.
//!
//! More happens in a world than on a GPU: a copy or a kernel that finds nothing to do touches what it would. And fewer works come
//! after others: the host, which waits for what it reads before it goes on, does not count.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display, Write as _};

use ihip_dsl::emit::{Activation, ArgumentKind, Buffer, Extent, Kernel, Paging, Program, Slots, Value};
use ihip_dsl::{Geometry, KvType, Plan, Renewal, parse_str};

use super::clocks::{Access, Clocks, Deed, Fault};
use super::order::{Action, Event, Order, Work};
use crate::Step;
use crate::kv::slot::Stream;
use crate::kv::{Kind, Tier};
use crate::session::{Phase, SEGMENT, Session, segment_end};

/// Operations of the longest sequences. All but those that read lists begin after whatever was moved before, so that no work of
/// one can meet any of an operation before the last but one.
const LONGEST: usize = 3;
const LAYERS: usize = 5;
const EXTENT: Extent = Extent { rows: SEGMENT, tokens: 8 * SEGMENT };

/// Layers that stage their keys, values as well in the dense one, with kept probes and lists renewed from any stage.
const FLASH: &str = "pub Flash {
    sink 64; window 128;
    stage { chunk 64, refresh 4 }
    stage { keep 1_024, chunk 16, refresh 2 }
    attend { keep 256 }
    rope { scan relative, attend streaming }
    layers 0 { dense; }
}";
/// Heads that take turns, under summaries of chunks.
const TURNS: &str = "pub Turns {
    sink 64; window 128; refresh staggered;
    stage { chunk 64, representative mean, refresh 16 }
    stage { keep 1_024, chunk 16, representative exact, refresh 4 }
    attend { keep 256 }
    rope { scan none, attend none }
}";
/// Only layers 1 and 4 stage anything, and layer 0 moves pages all the same.
const SPARSE: &str = "pub Sparse {
    sink 64; window 128;
    rope { attend streaming }
    layers 1 { stage { chunk 64, refresh 2 } attend { keep 256 } rope { scan relative, attend streaming } }
    layers 4 { stage { chunk 64, refresh 2 } attend { keep 256 } rope { scan relative, attend streaming } }
}";
/// A dense prompt, and layers that are dense throughout beside such as are not.
const QUEST: &str = "pub Quest {
    query_block 16; sink 0; window 32;
    stage { chunk 16, representative min_max }
    attend { keep 256 }
    ranking each;
    rope { scan none, attend none }
    prefill { dense; }
    layers 0..=1 { dense; }
}";
/// Prompts begin densely up to [`TRAINED`], for lists are long.
const DENSELY: &str = "pub Densely {
    sink 64; window 128;
    stage { chunk 32 }
    stage { keep 16_384, chunk 8 }
    attend { keep 8_192 }
    rope { scan relative, attend streaming }
    layers 0 { dense; }
}";
/// Positions that the model was trained on: the second of three calls of a step behind the first segment ends there.
const TRAINED: usize = 3 * SEGMENT;
/// Nothing moves behind a step: a recording of one has no branch.
const EVERY: &str = "pub Every { dense; }";

/// Memory that works share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Keys or values of a layer in the slots of a tier.
    Slots(usize, Kind, Tier),
    /// One of the buffers that keys are staged in, or the first, of values.
    Staged(Kind, usize),
    /// What a layer has of its own.
    Of(usize, Buffer),
    /// What layers share.
    Shared(Buffer),
    /// Lists that stand in for those of scans.
    Given,
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots(layer, kind, tier) => write!(f, "{kind} of layer {layer} on the {tier}"),
            Self::Staged(kind, buffer) => write!(f, "staged {kind}, buffer {buffer}"),
            Self::Of(layer, buffer) => write!(f, "{} of layer {layer}", buffer.word()),
            Self::Shared(buffer) => f.write_str(&buffer.word()),
            Self::Given => f.write_str("given lists"),
        }
    }
}

/// What is asked of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operation {
    /// A step of prefill, given up before a layer, or not.
    Prefill {
        step: Step,
        until: usize,
    },
    Decode {
        step: Step,
        recorded: bool,
    },
    /// What was counted is read.
    Tally,
    /// It is asked where tokens are.
    Residence,
    /// A row of the last layer is spoilt.
    Spoil,
    /// Lists are read: those of the last step, and those that moves look at.
    Lists,
    /// Lists are handed over that stand in for them.
    Give,
    /// A measurement reads pages.
    Gather,
    /// The request is given back, and another one takes its memory.
    Renew,
}

impl Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { step, until: LAYERS } => match step.calls().len() {
                1 => f.write_str("prefill"),
                calls => write!(f, "prefill of {calls} calls"),
            },
            Self::Prefill { until, .. } => write!(f, "prefill of layers 0..{until}"),
            Self::Decode { recorded: true, .. } => f.write_str("recorded decode"),
            Self::Decode { .. } => f.write_str("decode"),
            Self::Tally => f.write_str("tally"),
            Self::Residence => f.write_str("residence"),
            Self::Spoil => f.write_str("spoil"),
            Self::Lists => f.write_str("lists"),
            Self::Give => f.write_str("give"),
            Self::Gather => f.write_str("gather"),
            Self::Renew => f.write_str("another request"),
        }
    }
}

/// What is handed over, and the place in the code where that happens, for what orders others.
#[derive(Clone, Debug)]
struct Handed {
    site: Option<String>,
    deed: Deed,
}

/// A pipeline's launches over places.
struct World {
    plan: Plan,
    order: Order,
    /// Of each kernel, its arguments.
    kernels: HashMap<String, Vec<ArgumentKind>>,
    /// Buffers of which each layer has its own.
    own: Vec<HashSet<Buffer>>,
    /// Whether lists are given.
    given: bool,
}

impl World {
    fn new(pipeline: &str, dense_path: bool, given: bool) -> Self {
        // Dense begins read caches of 16 bits alone.
        let (kv_type, query_scale) = (if dense_path { KvType::Bf16 } else { KvType::Int8 }, 1.0);
        let trained = TRAINED as u32;
        let geometry = Geometry { query_heads: 4, kv_heads: 2, head_dim: 64, kv_type, page: 16, query_scale, trained };
        let pipeline = parse_str(pipeline).expect("a valid pipeline").remove(0);
        let plan = Plan::new(&pipeline, geometry, vec![1.0; 32], LAYERS as u32).expect("it fits");
        let program = Program::new(&plan, Activation::F32).expect("a usual head").keeping_probes(2);
        let program = if dense_path { program.with_dense_path() } else { program };
        assert_eq!(program.begins_densely(LAYERS - 1, TRAINED), dense_path, "{}", plan.name());
        let pages = EXTENT.tokens / 16;
        let paging = Paging::new(&program, Slots { pages, keys: pages / 2, values: pages / 8 });
        let kinds = |kernel: Kernel| (kernel.name, kernel.arguments.iter().map(|argument| argument.kind).collect());
        let own = |layer| {
            let storage = program.layer_state(layer, EXTENT).into_iter().chain(paging.layer_state(layer));
            storage.map(|storage| storage.buffer).chain([Buffer::PageTable]).collect()
        };
        Self {
            kernels: program.kernels().into_iter().chain(paging.kernels()).map(kinds).collect(),
            own: (0..LAYERS).map(own).collect(),
            order: Order::new(paging),
            plan,
            given,
        }
    }

    /// Where a buffer of `layer` lies.
    fn places(&self, layer: usize, buffer: Buffer) -> Vec<Place> {
        let slots = |kind| [Tier::Gpu, Tier::Host].map(|tier| Place::Slots(layer, kind, tier)).to_vec();
        let turn = || self.order.turn(layer).expect("a layer that is staged");
        let staged = |kind, buffer| vec![Place::Slots(layer, kind, Tier::Gpu), Place::Staged(kind, buffer)];
        match buffer {
            Buffer::Keys => slots(Kind::Keys),
            Buffer::Values => slots(Kind::Values),
            Buffer::StagedKeys => staged(Kind::Keys, turn() % 2),
            Buffer::StagedValues => staged(Kind::Values, 0),
            own if self.own[layer].contains(&own) => vec![Place::Of(layer, own)],
            shared => vec![Place::Shared(shared)],
        }
    }

    fn access(&self, layer: usize, buffer: Buffer, writes: bool) -> impl Iterator<Item = Access> {
        self.places(layer, buffer).into_iter().map(move |place| Access { place, writes })
    }

    /// What a stream touches, or what it waits for.
    fn deed(&self, Action { on, work }: Action) -> Deed {
        let touch = |name, accesses| Deed::Touch { on, name, accesses };
        match work {
            Work::Launch(layer, launch) => {
                let kinds = &self.kernels[&launch.kernel];
                assert_eq!(kinds.len(), launch.arguments.len(), "{}", launch.kernel);
                let lists = [Buffer::CachedBlocks, Buffer::CachedCount];
                let accesses = kinds.iter().zip(&launch.arguments).flat_map(|(kind, value)| {
                    let (Value::Buffer(buffer) | Value::Part(buffer, _)) = *value else { return Vec::new() };
                    let writes = matches!(kind, ArgumentKind::Output(_));
                    if self.given && !writes && lists.contains(&buffer) {
                        return vec![Access { place: Place::Given, writes }];
                    }
                    self.access(layer, buffer, writes).collect()
                });
                let kernel = launch.kernel.splitn(3, '_').last().unwrap_or_default();
                touch(format!("{kernel} of layer {layer}"), accesses.collect())
            }
            Work::Stage(layer, kind) => {
                let staged = if kind == Kind::Keys { Buffer::StagedKeys } else { Buffer::StagedValues };
                // Of both, the part that is the host's.
                let host = |place: &Place| !matches!(place, Place::Slots(_, _, Tier::Gpu));
                let to = self.places(layer, staged).into_iter().filter(host);
                let from = Access { place: Place::Slots(layer, kind, Tier::Host), writes: false };
                let accesses = to.map(|place| Access { place, writes: true }).chain([from]);
                touch(format!("the copy of {kind} of layer {layer}"), accesses.collect())
            }
            Work::Record(event) => Deed::Record(on, event),
            Work::Wait(event) => Deed::Wait(on, event),
            Work::Join => Deed::Join(on),
        }
    }

    /// What `operation` hands over.
    fn handed(&self, operation: &Operation) -> Vec<Handed> {
        let mut trace = Trace { world: self, handed: Vec::new() };
        match operation {
            Operation::Prefill { step, until } => trace.prefill(step, *until),
            Operation::Decode { step, recorded } => trace.decode(step, *recorded),
            Operation::Tally => trace.settled("tally", &[(Buffer::Tally, false)]),
            Operation::Residence => trace.settled("residence", &[(Buffer::PageTable, false)]),
            Operation::Spoil => trace.settled("spoil", &[(Buffer::PageTable, false), (Buffer::Keys, true)]),
            Operation::Gather => trace.settled("gather", &[(Buffer::Values, false)]),
            Operation::Lists => {
                let lists = [Buffer::Blocks, Buffer::Counts, Buffer::CachedBlocks, Buffer::CachedCount];
                trace.touch_layers("lists", &lists.map(|list| (list, false)));
            }
            Operation::Give => {
                trace.submit("give", [Order::settled()]);
                trace.touch("new lists", vec![Access { place: Place::Given, writes: true }]);
            }
            Operation::Renew => {
                let site = Some("another request: the host waits for both streams".to_owned());
                trace.handed.push(Handed { site, deed: Deed::Synchronize });
                trace.touch("what another request begins with", self.everything());
            }
        }
        trace.handed
    }

    /// Every place, written.
    fn everything(&self) -> Vec<Access> {
        let steps = self.operations().into_iter().filter(|operation| *operation != Operation::Renew);
        let mut all: Vec<Access> = Vec::new();
        for handed in steps.flat_map(|operation| self.handed(&operation)) {
            let Deed::Touch { accesses, .. } = handed.deed else { continue };
            for Access { place, .. } in accesses {
                if all.iter().all(|known| known.place != place) {
                    all.push(Access { place, writes: true });
                }
            }
        }
        all
    }

    /// What a sequence is made of.
    fn operations(&self) -> Vec<Operation> {
        let prefill = |calls: usize, until| {
            // The first step of a prompt, or a later one.
            let start = if calls == 1 { 0 } else { SEGMENT };
            let t_max = start + calls * SEGMENT;
            let step = Step { start, rows: calls * SEGMENT, t_max, phase: Phase::Prefill };
            Operation::Prefill { step, until }
        };
        let start = 4 * SEGMENT;
        let decode = |renewals| {
            let step = Step { start, rows: 1, t_max: segment_end(start), phase: Phase::Decode { renewals } };
            [false, true].map(|recorded| Operation::Decode { step: step.clone(), recorded })
        };
        let all = (0..LAYERS).map(|layer| self.plan.renewal(layer, 0)).collect();
        let mut operations = vec![prefill(1, LAYERS), prefill(3, LAYERS)];
        operations.extend(decode(all));
        operations.extend(decode(vec![Renewal::default(); LAYERS]));
        operations.extend((1..LAYERS).map(|until| prefill(1, until)));
        operations.extend([Operation::Tally, Operation::Residence, Operation::Lists, Operation::Spoil]);
        operations.extend([Operation::Gather, Operation::Renew]);
        operations.extend(self.given.then_some(Operation::Give));
        operations
    }

    /// The shortest sequence of operations in which something goes wrong where what is handed over at a site is left
    /// out, or nowhere; and what goes wrong.
    fn search(&self, without: Option<&str>) -> Option<(String, Fault)> {
        let operations = self.operations();
        let kept = |handed: &Handed| without.is_none() || handed.site.as_deref() != without;
        let handed: Vec<Vec<Deed>> = (operations.iter())
            .map(|operation| self.handed(operation).into_iter().filter(kept).map(|handed| handed.deed).collect())
            .collect();
        for length in 1..=LONGEST {
            for number in 0..operations.len().pow(length as u32) {
                let digit = |place: usize| number / operations.len().pow(place as u32) % operations.len();
                let sequence: Vec<usize> = (0..length).rev().map(digit).collect();
                let mut clocks = Clocks::default();
                if let Err(fault) =
                    sequence.iter().flat_map(|index| &handed[*index]).try_for_each(|deed| clocks.hand(deed))
                {
                    let way: Vec<String> = sequence.iter().map(|index| operations[*index].to_string()).collect();
                    return Some((way.join(", "), fault));
                }
            }
        }
        None
    }

    /// The places in the code where something is ordered, in the order in which operations come to them.
    fn sites(&self) -> Vec<String> {
        let mut sites: Vec<String> = Vec::new();
        for site in
            self.operations().iter().flat_map(|operation| self.handed(operation)).filter_map(|handed| handed.site)
        {
            if !sites.contains(&site) {
                sites.push(site);
            }
        }
        sites
    }
}

/// What one operation hands over, as the device does.
struct Trace<'w> {
    world: &'w World,
    handed: Vec<Handed>,
}

impl Trace<'_> {
    /// What the device submits for an operation in `part`.
    fn submit(&mut self, part: &str, actions: impl IntoIterator<Item = Action>) {
        for action in actions {
            let site = words(&action).map(|words| format!("{part}: {words}"));
            let deed = self.world.deed(action);
            self.handed.push(Handed { site, deed });
        }
    }

    /// What else the stream of steps is handed.
    fn touch(&mut self, name: &str, accesses: Vec<Access>) {
        let deed = Deed::Touch { on: Stream::Compute, name: name.to_owned(), accesses };
        self.handed.push(Handed { site: None, deed });
    }

    fn touch_shared(&mut self, name: &str, accesses: &[(Buffer, bool)]) {
        let access = |&(buffer, writes)| Access { place: Place::Shared(buffer), writes };
        self.touch(name, accesses.iter().map(access).collect());
    }

    /// The host reads something of every layer, or writes it, after all moves.
    fn settled(&mut self, part: &str, accesses: &[(Buffer, bool)]) {
        self.submit(part, [Order::settled()]);
        self.touch_layers(part, accesses);
    }

    fn touch_layers(&mut self, name: &str, accesses: &[(Buffer, bool)]) {
        let layers = (0..LAYERS).flat_map(|layer| accesses.iter().map(move |access| (layer, *access)));
        let accesses = layers.flat_map(|(layer, (buffer, writes))| self.world.access(layer, buffer, writes)).collect();
        self.touch(name, accesses);
    }

    fn begin(&mut self) {
        self.submit("begin", [Order::settled()]);
        self.touch_shared("the words of a step", &[(Buffer::Step, true)]);
    }

    fn attention(&mut self, part: &str, layer: usize, step: &Step, call: &Step) {
        self.touch_shared("projections", &[(Buffer::Qkv, true)]);
        self.submit(&format!("{part}, layer {layer}"), self.world.order.attention(layer, EXTENT, [step, call]));
        self.touch_shared("what follows the attention", &[(Buffer::Out, false)]);
    }

    fn prefill(&mut self, step: &Step, until: usize) {
        self.begin();
        for layer in 0..until {
            for call in step.calls() {
                self.touch_shared("the words of a call", &[(Buffer::Step, true)]);
                self.attention("prefill", layer, step, &call);
            }
        }
    }

    fn decode(&mut self, step: &Step, recorded: bool) {
        self.begin();
        if recorded {
            self.handed.push(Handed { site: None, deed: Deed::BeginRecording });
        }
        for layer in 0..LAYERS {
            self.attention("decode", layer, step, step);
        }
        if recorded {
            self.submit("end of a recorded step", self.world.order.ended(step));
            self.handed.push(Handed { site: None, deed: Deed::EndRecording });
        }
    }
}

/// What orders others, in words.
fn words(Action { on, work }: &Action) -> Option<String> {
    let other = if *on == Stream::Compute { Stream::Copy } else { Stream::Compute };
    let event = |event: &Event| match event {
        Event::Come(buffer) => format!("keys have come to buffer {buffer}"),
        Event::Read(buffer) => format!("buffer {buffer} has been read"),
    };
    match work {
        Work::Launch(..) | Work::Stage(..) => None,
        Work::Record(of) => Some(format!("{on:?} records that {}", event(of))),
        Work::Wait(of) => Some(format!("{on:?} waits until {}", event(of))),
        Work::Join => Some(format!("{on:?} waits for {other:?}")),
    }
}

fn worlds() -> Vec<World> {
    let special = [World::new(FLASH, false, true), World::new(DENSELY, true, false)];
    let plain = [FLASH, TURNS, SPARSE, QUEST, EVERY].map(|pipeline| World::new(pipeline, false, false));
    special.into_iter().chain(plain).collect()
}

#[test]
fn whatever_the_streams_do_first_makes_no_difference() {
    for world in worlds() {
        if let Some((way, fault)) = world.search(None) {
            panic!("{}, after {way}: {fault}", world.plan.name());
        }
    }
}

/// Every pattern of renewals of two requests in turn, each first unrecorded and then recorded.
#[test]
fn whole_requests_come_to_no_race() {
    for world in worlds() {
        let mut operations = Vec::new();
        for _ in 0..2 {
            let mut session = Session::new(world.plan.clone().into());
            operations.push(Operation::Renew);
            for _ in 0..2 {
                for step in session.prefill_steps(5 * SEGMENT / 2 + 64, 2 * SEGMENT).expect("a chunk of segments") {
                    session.advance(&step);
                    operations.push(Operation::Prefill { step, until: LAYERS });
                }
                let mut patterns = HashSet::new();
                for _ in 0..40 {
                    let step = session.decode_step();
                    session.advance(&step);
                    let recorded = !patterns.insert(step.graph_key().map(<[Renewal]>::to_vec));
                    operations.push(Operation::Decode { step, recorded });
                }
                operations.extend([Operation::Tally, Operation::Spoil]);
            }
        }
        let handed: Vec<Deed> =
            operations.iter().flat_map(|operation| world.handed(operation)).map(|handed| handed.deed).collect();
        let mut clocks = Clocks::default();
        let outcome = handed.iter().try_for_each(|deed| clocks.hand(deed));
        assert_eq!(outcome, Ok(()), "{}", world.plan.name());
    }
}

/// What goes wrong first without each event, wait and join.
#[test]
fn without_any_event_wait_or_join_something_goes_wrong() {
    let mut text = String::new();
    for world in [World::new(FLASH, false, true), World::new(SPARSE, false, false)] {
        writeln!(text, "{}", world.plan.name()).expect("room in a string");
        for site in world.sites() {
            let found = world.search(Some(&site));
            let (way, fault) =
                found.unwrap_or_else(|| panic!("{}: nothing goes wrong without `{site}`", world.plan.name()));
            writeln!(text, "  {site}\n    {way} => {fault}").expect("room in a string");
        }
    }
    insta::assert_snapshot!(text);
}

/// What [`Order::ended`] sees to.
#[test]
fn a_branch_that_was_not_begun_cannot_be_joined() {
    let mut clocks = Clocks::default();
    assert_eq!(clocks.hand(&Deed::BeginRecording), Ok(()));
    assert_eq!(clocks.hand(&Deed::Join(Stream::Compute)), Err(Fault::NoBranch));
}

/// A step of two calls of prefill, and one of decoding: what either stream is handed, in order.
#[test]
fn the_order_of_a_step() {
    let world = World::new(FLASH, false, false);
    let renewals = (0..LAYERS).map(|layer| world.plan.renewal(layer, 0)).collect();
    let start = 3 * SEGMENT;
    let prefill = Step { start: SEGMENT, rows: 2 * SEGMENT, t_max: start, phase: Phase::Prefill };
    let decode = Step { start, rows: 1, t_max: segment_end(start), phase: Phase::Decode { renewals } };
    let mut text = String::new();
    for step in [prefill, decode] {
        for layer in 0..LAYERS {
            for call in step.calls() {
                for action in world.order.attention(layer, EXTENT, [&step, &call]) {
                    let words = words(&action);
                    let stream = action.on;
                    let words = words.unwrap_or_else(|| match world.deed(action) {
                        Deed::Touch { name, .. } => format!("{stream:?}: {name}"),
                        other => panic!("{other:?} has words"),
                    });
                    writeln!(text, "{words}").expect("room in a string");
                }
            }
        }
        if let Some(action) = world.order.ended(&step) {
            writeln!(text, "{}", words(&action).expect("a join")).expect("room in a string");
        }
        text.push('\n');
    }
    insta::assert_snapshot!(text);
}
