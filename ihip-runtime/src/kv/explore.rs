//! Every state that the slot machine can reach in a small world, and what every step in it reads.
//!
//! The world has two streams that run on their own, a memory whose slots remember what was written to them, and a host
//! that hands over work in any order: steps of two requests, moves of any page either way, cancelling, forking, looking
//! whether copies have ended. Events and generations are kept relative to what has happened, so that the states are
//! finitely many: the search, breadth first, ends because nothing new can be reached, not because it gave up. The stream of
//! steps is handed its next work when it has finished the last; one page moves at a time, or two do.
//!
//! An explorer of its own rather than `loom`: what runs side by side here is not threads over atomics but queues of a
//! device over memory that is not coherent between them, states recur and are recognised, and the way to a violation is a
//! shortest one.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use super::page::{Owners, PageId};
use super::pool::{End, Place, Pool, Tier, Transfer};
use super::rules::{Rules, Sound};
use super::slot::{Events, State, Stream};

/// Slots of each tier.
const SLOTS: usize = 2;
/// Requests at a time.
const REQUESTS: usize = 2;

/// How long requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Size {
    /// Pages of a request.
    pages: usize,
    /// Tokens of a page.
    tokens: u8,
    /// Pages that move at a time.
    moves: usize,
}

/// Pages that are written in two steps, so that copies, forks and cancelling meet half a page.
const GROWING: Size = Size { pages: 1, tokens: 2, moves: 1 };
/// More pages than the GPU has slots.
const CROWDED: Size = Size { pages: 2, tokens: 1, moves: 1 };
/// Pages that move side by side, and copies that wait for each other in their stream.
const MOVING: Size = Size { pages: 1, tokens: 2, moves: 2 };

/// What a slot of memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Content {
    /// Nothing that anybody wrote, or a page half overwritten.
    Garbage,
    /// The first tokens of a page. Names of pages come round again: how often this one has since.
    Tokens { page: PageId, age: u8, count: u8 },
}

/// One read or write of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Access {
    /// Tokens are appended: what is there already and stays is not overwritten.
    writes: bool,
    place: Place,
    content: Content,
}

impl Access {
    const fn read(place: Place, content: Content) -> Self {
        Self { writes: false, place, content }
    }

    const fn write(place: Place, content: Content) -> Self {
        Self { writes: true, place, content }
    }
}

/// What was handed to a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Work {
    wait: Events,
    accesses: Vec<Access>,
    running: bool,
}

/// A request: its pages in order, and the tokens in the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Request {
    pages: Vec<PageId>,
    last: u8,
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World<R> {
    size: Size,
    owners: Owners<R>,
    pool: Pool<R>,
    requests: Vec<Request>,
    transfers: VecDeque<Transfer>,
    issued: Events,
    done: Events,
    queues: [VecDeque<Work>; 2],
    memory: [[Content; SLOTS]; 2],
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// A request reads its pages and appends a token, to its last page or to a new one.
    Append(usize),
    /// A request reads its pages.
    Read(usize),
    /// A page begins to move.
    Move(PageId, Tier),
    /// The host looks after the oldest move.
    Look,
    /// A request is cancelled.
    Cancel(usize),
    /// One request becomes a copy of the other.
    Fork { from: usize, to: usize },
    /// A stream begins its next work.
    Begin(Stream),
    /// A stream ends the work that it began.
    Finish(Stream),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbage => f.write_str("garbage"),
            Self::Tokens { page, age: 0, count } => write!(f, "{count} tokens of page {}", page.index()),
            Self::Tokens { page, count, .. } => write!(f, "{count} tokens of a former page {}", page.index()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append(request) => write!(f, "request {request} appends a token"),
            Self::Read(request) => write!(f, "request {request} reads"),
            Self::Move(page, tier) => write!(f, "page {} begins to move to {tier:?}", page.index()),
            Self::Look => write!(f, "the oldest move is looked after"),
            Self::Cancel(request) => write!(f, "request {request} is cancelled"),
            Self::Fork { from, to } => write!(f, "request {from} is forked as {to}"),
            Self::Begin(stream) => write!(f, "{stream:?} begins its next work"),
            Self::Finish(stream) => write!(f, "{stream:?} finishes it"),
        }
    }
}

/// What must never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Violation {
    /// Work reads something else than its page.
    WrongRead { stream: Stream, expected: Content, found: Content },
    /// Two works touch a slot at a time, one of them writing.
    Race(Place),
    /// Streams wait for each other for ever.
    Deadlock,
    /// Slots that nobody has any more are not free.
    Leak,
    /// The machine was asked for what it does not do.
    Panic(String),
}

const STREAMS: [Stream; 2] = [Stream::Compute, Stream::Copy];

const fn number(stream: Stream) -> usize {
    match stream {
        Stream::Compute => 0,
        Stream::Copy => 1,
    }
}

impl<R: Rules + Clone> World<R> {
    fn new(size: Size) -> Self {
        Self {
            size,
            owners: Owners::default(),
            pool: Pool::new(SLOTS, SLOTS),
            requests: vec![Request::default(); REQUESTS],
            transfers: VecDeque::new(),
            issued: Events::NONE,
            done: Events::NONE,
            queues: Default::default(),
            memory: [[Content::Garbage; SLOTS]; 2],
        }
    }

    fn memory(&mut self, place: Place) -> &mut Content {
        &mut self.memory[match place.tier {
            Tier::Gpu => 0,
            Tier::Host => 1,
        }][place.slot as usize]
    }

    /// Whether a stream has finished what it was handed.
    fn is_idle(&self, stream: Stream) -> bool {
        self.queues[number(stream)].is_empty()
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (request, Request { pages, last }) in self.requests.iter().enumerate() {
            let open = !pages.is_empty() && *last < self.size.tokens;
            if self.is_idle(Stream::Compute) {
                if open || pages.len() < self.size.pages && self.pool.free(Tier::Gpu) > 0 {
                    actions.push(Action::Append(request));
                }
                if !pages.is_empty() {
                    actions.push(Action::Read(request));
                }
                let to = 1 - request;
                let takes_slot = usize::from(open);
                if !pages.is_empty() && self.requests[to].pages.is_empty() && self.pool.free(Tier::Gpu) >= takes_slot {
                    actions.push(Action::Fork { from: request, to });
                }
            }
            if !pages.is_empty() {
                actions.push(Action::Cancel(request));
            }
        }
        let moving = self.queues[number(Stream::Copy)].len().max(self.transfers.len());
        if moving < self.size.moves {
            let pages = (0..(REQUESTS * self.size.pages) as u32).map(PageId);
            for page in pages.filter(|page| self.pool.is_movable(*page)) {
                let tier = match self.pool.home(page).expect("movable pages have a home").tier {
                    Tier::Gpu => Tier::Host,
                    Tier::Host => Tier::Gpu,
                };
                if self.pool.free(tier) > 0 {
                    actions.push(Action::Move(page, tier));
                }
            }
        }
        if !self.transfers.is_empty() {
            actions.push(Action::Look);
        }
        for stream in STREAMS {
            if let Some(work) = self.queues[number(stream)].front() {
                match work.running {
                    true => actions.push(Action::Finish(stream)),
                    false if work.wait.happened_by(self.done) => actions.push(Action::Begin(stream)),
                    false => {}
                }
            }
        }
        actions
    }

    fn apply(&mut self, action: Action) -> Result<(), Violation> {
        match action {
            Action::Append(request) => self.append(request),
            Action::Read(request) => {
                let accesses = self.reads(request);
                self.issued.next(Stream::Compute);
                self.hand_over(Stream::Compute, Events::NONE, accesses);
            }
            Action::Move(page, tier) => {
                let event = self.issued.next(Stream::Copy);
                let transfer = self.pool.begin(page, tier, event).expect("a slot is free");
                let content = content(page, self.size.tokens);
                let accesses = vec![Access::read(transfer.from(), content), Access::write(transfer.to(), content)];
                self.hand_over(Stream::Copy, transfer.wait(), accesses);
                self.transfers.push_back(transfer);
            }
            Action::Look => {
                let oldest = self.transfers[0];
                if self.pool.end(&oldest, self.done, self.steps()) != End::Early {
                    self.transfers.pop_front();
                }
            }
            Action::Cancel(request) => {
                for page in std::mem::take(&mut self.requests[request]).pages {
                    if self.owners.give_up(page) {
                        self.pool.release(page, self.steps());
                    }
                }
            }
            Action::Fork { from, to } => self.fork(from, to),
            Action::Begin(stream) => self.begin(stream)?,
            Action::Finish(stream) => self.finish(stream)?,
        }
        self.rebase();
        self.check()
    }

    /// The events of all steps that were handed over: any of them may read any page that had a home then.
    fn steps(&self) -> Events {
        Events::of(Stream::Compute, self.issued.in_stream(Stream::Compute))
    }

    /// Reads of all pages of a request, where they are now.
    fn reads(&self, request: usize) -> Vec<Access> {
        let Request { pages, last } = &self.requests[request];
        let count = |index: usize| if index + 1 == pages.len() { *last } else { self.size.tokens };
        let read = |(index, page): (usize, &PageId)| {
            Access::read(self.pool.home(*page).expect("a page of a request has a home"), content(*page, count(index)))
        };
        pages.iter().enumerate().map(read).collect()
    }

    /// A new page for a request: what bore its name is a page of old.
    fn name(&mut self) -> PageId {
        let named = self.owners.name();
        let works = self.queues.iter_mut().flatten().flat_map(|work| &mut work.accesses);
        let contents = works.map(|access| &mut access.content);
        for content in contents.chain(self.memory.as_flattened_mut()) {
            if let Content::Tokens { page, age, .. } = content
                && *page == named
            {
                *age += 1;
            }
        }
        named
    }

    fn append(&mut self, request: usize) {
        let mut accesses = self.reads(request);
        let writer = self.issued.next(Stream::Compute);
        let Request { pages, last } = self.requests[request].clone();
        let (page, count, wait) = match pages.last() {
            Some(page) if last < self.size.tokens => {
                self.pool.append(*page, writer);
                (*page, last + 1, Events::NONE)
            }
            _ => {
                let page = self.name();
                self.requests[request].pages.push(page);
                (page, 1, self.pool.put(page, writer).expect("a slot is free"))
            }
        };
        self.requests[request].last = count;
        if count == self.size.tokens {
            self.pool.fill(page);
        }
        let home = self.pool.home(page).expect("it was put somewhere");
        accesses.push(Access::write(home, content(page, count)));
        self.hand_over(Stream::Compute, wait, accesses);
    }

    fn fork(&mut self, from: usize, to: usize) {
        let mut forked = self.requests[from].clone();
        let open = (forked.last < self.size.tokens).then(|| forked.pages.pop()).flatten();
        for page in &forked.pages {
            self.owners.share(*page);
        }
        if let Some(open) = open {
            // A page that is still written belongs to one request: the other gets its tokens in a page of its own.
            let writer = self.issued.next(Stream::Compute);
            let copy = self.name();
            let wait = self.pool.put(copy, writer).expect("a slot is free");
            let place = |page| self.pool.home(page).expect("both have a home");
            let accesses = vec![
                Access::read(place(open), content(open, forked.last)),
                Access::write(place(copy), content(copy, forked.last)),
            ];
            self.hand_over(Stream::Compute, wait, accesses);
            forked.pages.push(copy);
        }
        self.requests[to] = forked;
    }

    fn hand_over(&mut self, stream: Stream, wait: Events, accesses: Vec<Access>) {
        self.queues[number(stream)].push_back(Work { wait, accesses, running: false });
    }

    fn begin(&mut self, stream: Stream) -> Result<(), Violation> {
        let accesses = self.queues[number(stream)][0].accesses.clone();
        let others = self.queues[1 - number(stream)].front().filter(|work| work.running);
        for other in others.into_iter().flat_map(|work| &work.accesses) {
            let meets = |access: &&Access| access.place == other.place && (access.writes || other.writes);
            if let Some(access) = accesses.iter().find(meets) {
                return Err(Violation::Race(access.place));
            }
        }
        for Access { place, content: expected, .. } in accesses.iter().filter(|access| !access.writes) {
            let found = *self.memory(*place);
            if !found.begins_with(*expected) {
                return Err(Violation::WrongRead { stream, expected: *expected, found });
            }
        }
        for Access { place, content, .. } in accesses.iter().filter(|access| access.writes) {
            // Appending leaves the tokens that are there as they are; anything else is torn until it is finished.
            let memory = self.memory(*place);
            if !content.begins_with(*memory) {
                *memory = Content::Garbage;
            }
        }
        self.queues[number(stream)][0].running = true;
        Ok(())
    }

    fn finish(&mut self, stream: Stream) -> Result<(), Violation> {
        let work = self.queues[number(stream)].pop_front().expect("it is running");
        for Access { place, content, .. } in work.accesses.into_iter().filter(|access| access.writes) {
            *self.memory(place) = content;
        }
        self.done.next(stream);
        Ok(())
    }

    /// Forgets what nothing depends on any more: events that have happened, generations that nobody remembers, tokens that
    /// nobody is going to read.
    fn rebase(&mut self) {
        let done = self.done;
        self.pool.rebase(&mut self.transfers, done);
        for work in self.queues.iter_mut().flatten() {
            work.wait = work.wait.since(done);
        }
        self.issued = self.issued.since(done);
        self.done = Events::NONE;
        self.owners.rebase();
        let works: Vec<Content> =
            self.queues.iter().flatten().flat_map(|work| &work.accesses).map(|access| access.content).collect();
        for memory in self.memory.as_flattened_mut() {
            let Content::Tokens { page, age, .. } = *memory else { continue };
            let is_same = |content: &Content| content.name() == Some((page, age));
            if !(age == 0 && self.pool.home(page).is_some() || works.iter().any(is_same)) {
                *memory = Content::Garbage;
            }
        }
        // Of the pages that bore a name before, only the order counts.
        let mut old: Vec<(PageId, u8)> = works.iter().filter_map(|content| content.name()).collect();
        old.retain(|(_, age)| *age > 0);
        old.sort_unstable();
        old.dedup();
        let works = self.queues.iter_mut().flatten().flat_map(|work| &mut work.accesses);
        let contents = works.map(|access| &mut access.content);
        for content in contents.chain(self.memory.as_flattened_mut()) {
            if let Content::Tokens { page, age, .. } = content
                && *age > 0
            {
                *age = old.iter().filter(|(of, when)| of == page && when <= age).count() as u8;
            }
        }
    }

    fn check(&self) -> Result<(), Violation> {
        let waits = |stream: Stream| {
            let work = self.queues[number(stream)].front();
            work.map(|work| !work.running && !work.wait.happened_by(self.done))
        };
        let stuck = STREAMS.map(waits);
        if stuck.contains(&Some(true)) && !stuck.contains(&Some(false)) {
            return Err(Violation::Deadlock);
        }
        let idle = self.requests.iter().all(|request| request.pages.is_empty()) && self.transfers.is_empty();
        let free = [Tier::Gpu, Tier::Host].iter().all(|tier| self.pool.free(*tier) == SLOTS);
        if idle && !(free && self.owners.pages() == 0) { Err(Violation::Leak) } else { Ok(()) }
    }
}

impl Content {
    /// Which page it is of, and how often its name has come round since.
    const fn name(self) -> Option<(PageId, u8)> {
        match self {
            Self::Garbage => None,
            Self::Tokens { page, age, .. } => Some((page, age)),
        }
    }

    /// Whether all of `tokens` are here.
    fn begins_with(self, tokens: Self) -> bool {
        match (self, tokens) {
            (Self::Tokens { page, age, count }, Self::Tokens { page: of, age: when, count: least }) => {
                (page, age) == (of, when) && count >= least
            }
            (_, Self::Garbage) | (Self::Garbage, _) => false,
        }
    }
}

/// The first `count` tokens of a page that has its name now.
const fn content(page: PageId, count: u8) -> Content {
    Content::Tokens { page, age: 0, count }
}

/// What a search found.
#[derive(Debug)]
struct Found {
    states: usize,
    /// States of slots that were reached.
    slots: HashSet<State>,
    violation: Option<(Vec<Action>, Violation)>,
}

/// Searches every state that can be reached, up to a first violation.
fn explore<R: Rules + Clone + Eq + std::hash::Hash>(size: Size) -> Found {
    let first = Rc::new(World::<R>::new(size));
    let mut slots = HashSet::new();
    // Of every state: the one before it and what led here.
    let mut ways: Vec<Option<(usize, Action)>> = vec![None];
    let mut known = HashSet::from([Rc::clone(&first)]);
    let mut frontier = VecDeque::from([(first, 0)]);
    while let Some((world, index)) = frontier.pop_front() {
        for action in world.actions() {
            let mut next = World::clone(&world);
            let applied = panic::catch_unwind(AssertUnwindSafe(|| next.apply(action)));
            let applied = applied.unwrap_or_else(|payload| Err(Violation::Panic(message(payload.as_ref()))));
            if let Err(violation) = applied {
                let before = std::iter::successors(ways[index], |(before, _)| ways[*before]);
                let mut way: Vec<Action> = before.map(|(_, action)| action).collect();
                way.reverse();
                way.push(action);
                return Found { states: ways.len(), slots, violation: Some((way, violation)) };
            }
            let next = Rc::new(next);
            if known.insert(Rc::clone(&next)) {
                let places = [Tier::Gpu, Tier::Host]
                    .into_iter()
                    .flat_map(|tier| (0..SLOTS as u32).map(move |slot| Place { tier, slot }));
                slots.extend(places.map(|place| next.pool.slot(place).state()));
                frontier.push_back((next, ways.len()));
                ways.push(Some((index, action)));
            }
        }
    }
    Found { states: ways.len(), slots, violation: None }
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Searches a world of this size and fails with the way to what must not be.
fn assert_sound(size: Size, least: usize) {
    let found = explore::<Sound>(size);
    assert!(found.violation.is_none(), "{:#?}", found.violation);
    assert!(found.states >= least, "{} states are not what this world has", found.states);
    assert_eq!(found.slots.len(), 4, "{:?}", found.slots);
}

#[test]
fn no_state_with_growing_pages_reads_a_wrong_one_loses_a_slot_or_stops() {
    assert_sound(GROWING, 50_000);
}

#[test]
fn no_state_with_crowded_tiers_reads_a_wrong_page_loses_a_slot_or_stops() {
    assert_sound(CROWDED, 900_000);
}

#[test]
fn no_state_with_two_moves_at_a_time_reads_a_wrong_page_loses_a_slot_or_stops() {
    assert_sound(MOVING, 250_000);
}

/// The shortest way to what goes wrong where a rule is broken, in words.
fn shortest_way<R: Rules + Clone + Eq + std::hash::Hash>() -> String {
    let found = [GROWING, CROWDED].into_iter().find_map(|size| explore::<R>(size).violation);
    let (way, violation) = found.expect("the exploration notices what is broken");
    let violation = match violation {
        Violation::WrongRead { stream, expected, found } => {
            format!("{stream:?} expects {expected} and finds {found}")
        }
        Violation::Race(place) => {
            format!("two works touch slot {} of {:?}, one of them writing", place.slot, place.tier)
        }
        Violation::Deadlock => "the streams wait for each other".to_owned(),
        Violation::Leak => "a slot is lost".to_owned(),
        Violation::Panic(text) => text,
    };
    let way: Vec<String> = way.iter().map(ToString::to_string).collect();
    format!("{}\n=> {violation}", way.join("\n"))
}

macro_rules! mutant {
    ($test:ident, $mutant:ident breaks $rule:ident) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        enum $mutant {}

        impl Rules for $mutant {
            const $rule: bool = false;
        }

        #[test]
        fn $test() {
            insta::assert_snapshot!(shortest_way::<$mutant>());
        }
    };
}

// A store that was handed over before the tokens it saves were written.
mutant!(a_copy_that_does_not_wait_for_the_writer_is_found, EagerCopy breaks COPIES_AFTER_WRITER);
// A load over what the step before still reads.
mutant!(a_slot_overwritten_under_its_readers_is_found, EagerOverwrite breaks OVERWRITES_AFTER_READERS);
// A host page evicted while it is being loaded.
mutant!(a_source_given_back_during_its_copy_is_found, EagerEnd breaks ENDS_AFTER_COPY);
// A cancelled request that takes the pages of another with it.
mutant!(a_shared_page_released_by_one_owner_is_found, LonelyOwner breaks COUNTS_OWNERS);
// A load that ends in a slot that has become another page's.
mutant!(a_copy_that_ends_for_a_page_long_released_is_found, Forgetful breaks COMPARES_GENERATIONS);
// A page that is saved while tokens are still appended to it.
mutant!(a_page_that_moves_before_it_is_full_is_found, HalfPages breaks MOVES_FULL_PAGES);
