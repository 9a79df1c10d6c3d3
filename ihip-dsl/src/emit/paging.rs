//! What keeps a layer's pages in two tiers: which kernels that takes, over which buffers and in which order.
//!
//! Kernels that scan and attend do not know of it: a page is where the page table says, and addresses of the host are read
//! like those of the GPU. A step of prefill reads a copy instead that lies on the GPU as a whole, *staged*: keys of
//! earlier steps have come there before it, values come once it is known which, and what it fills goes home afterwards.

use super::count::Count;
use super::exchange::{Exchange, Gather, WriteBack};
use super::launch::{Buffer, Element, Launch, Storage, Value, tally};
use super::probes::{MOST_LEVELS, Probes};
use super::promote::Promote;
use super::units::{Emit, Units};
use super::{Extent, Kernel, Program};
use crate::{LayerPlan, Renewal};

/// Pages of a layer that come to the GPU after a step.
pub(super) const MOST_MOVES: usize = 32;

/// Slots of a layer's pages. Those of the first ones lie on the GPU, keys further than values; the rest is with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// All of them: one a page.
    pub pages: usize,
    /// First slots whose keys are on the GPU.
    pub keys: usize,
    /// First slots whose values are on the GPU, at least 2 and no more than those whose keys are.
    pub values: usize,
}

/// Kernels that move the pages of a program's layers.
#[derive(Clone, Debug)]
pub struct Paging {
    program: Program,
    slots: Slots,
    units: Units<Unit>,
}

#[derive(Clone, Debug, PartialEq)]
enum Unit {
    Promote(Promote),
    Exchange(Exchange),
    Gather(Gather),
    WriteBack(WriteBack),
    Probes(Probes),
    Count(Count),
}

impl Emit for Unit {
    fn stem(&self, pipeline: &str) -> String {
        match self {
            Self::Promote(unit) => unit.stem(pipeline),
            Self::Exchange(unit) => unit.stem(pipeline),
            Self::Gather(unit) => unit.stem(pipeline),
            Self::WriteBack(unit) => unit.stem(pipeline),
            Self::Probes(unit) => unit.stem(pipeline),
            Self::Count(unit) => unit.stem(pipeline),
        }
    }

    fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        match self {
            Self::Promote(unit) => unit.emit(pipeline, name),
            Self::Exchange(unit) => unit.emit(pipeline, name),
            Self::Gather(unit) => unit.emit(pipeline, name),
            Self::WriteBack(unit) => unit.emit(pipeline, name),
            Self::Probes(unit) => unit.emit(pipeline, name),
            Self::Count(unit) => unit.emit(pipeline, name),
        }
    }
}

impl Paging {
    /// What moves the pages of `program` among `slots` in each layer.
    #[must_use]
    pub fn new(program: &Program, slots: Slots) -> Self {
        let (plan, shape) = (program.plan(), program.shape());
        let mut paging = Self { program: program.clone(), slots, units: Units::new(plan.name()) };
        for layer in 0..plan.layers() {
            let mut units = vec![Unit::Promote(Promote::claim(shape)), Unit::Exchange(Exchange { shape })];
            units.extend(Promote::new(shape, plan.decode(layer)).map(Unit::Promote));
            units.extend(Gather::new(shape, plan.prefill(layer)).map(Unit::Gather));
            units.extend(program.probes(layer).map(Unit::Probes));
            units.extend(Count::of(shape, plan.decode(layer), Some(0).into()).into_iter().map(Unit::Count));
            units.extend(paging.is_staged(layer).then_some(Unit::WriteBack(WriteBack { shape })));
            units.into_iter().for_each(|unit| paging.units.add(unit));
        }
        paging
    }

    /// The text of every kernel.
    #[must_use]
    pub fn kernels(&self) -> Vec<Kernel> {
        self.units.kernels()
    }

    /// What runs over the slots.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Slots of a layer.
    #[must_use]
    pub const fn slots(&self) -> Slots {
        self.slots
    }

    /// Most that a step adds to a word of a layer's [`Buffer::Tally`].
    #[must_use]
    pub fn most_counted(&self) -> usize {
        let tokens = self.slots.pages * self.program.plan().geometry().page as usize;
        let counts = self.units.iter().filter_map(|(unit, _)| match unit {
            Unit::Count(count) => Some(count.most(tokens)),
            _ => None,
        });
        // Whatever else is counted is each page once.
        counts.chain([self.slots.pages]).max().unwrap_or(0)
    }

    /// Bytes of a page of keys, or of values.
    #[must_use]
    pub fn page_bytes(program: &Program) -> usize {
        program.shape().page_bytes()
    }

    /// Levels of probes that it is worth to keep: see [`Program::keeping_probes`].
    #[must_use]
    pub const fn most_levels() -> usize {
        MOST_LEVELS
    }

    /// Buffers of which `layer` has its own, besides the page table.
    #[must_use]
    pub fn layer_state(&self, layer: usize) -> Vec<Storage> {
        let storage = |buffer, element, count, zeroed| Storage { buffer, element, count, zeroed };
        let tokens = self.slots.pages * self.program.plan().geometry().page as usize;
        let probes = self.program.probes(layer).map(|probes| probes.storage(tokens));
        let mut state = vec![
            storage(Buffer::Residents, Element::U32, self.slots.values, false),
            storage(Buffer::Reads, Element::U32, self.slots.pages, true),
            storage(Buffer::Hand, Element::U32, 1, true),
            storage(Buffer::Moves, Element::I32, 1 + 4 * MOST_MOVES, true),
            storage(Buffer::Tally, Element::U32, tally::WORDS, true),
        ];
        state.extend(probes);
        state
    }

    /// The page in each slot at first, where the first `sinks` pages, at least one, hold sinks: sinks, and then from the newest page to the
    /// oldest. What every step reads has the first claim on the GPU, and so has what is written first.
    #[must_use]
    pub fn residents(&self, sinks: usize) -> Vec<u32> {
        (0..sinks).chain((sinks..self.slots.pages).rev()).map(|page| page as u32).collect()
    }

    /// Whether steps of prefill read a copy of `layer` on the GPU: those that look at all of it.
    #[must_use]
    pub fn is_staged(&self, layer: usize) -> bool {
        let kind = self.program.plan().prefill(layer);
        *kind == LayerPlan::Dense || !kind.stages().is_empty()
    }

    /// Whether such a step looks at all values of `layer`, as it does at keys, where its first call is laid out for `t_max` keys:
    /// no other call of it begins densely if that one does not.
    #[must_use]
    pub fn has_staged_values(&self, layer: usize, t_max: usize) -> bool {
        *self.program.plan().prefill(layer) == LayerPlan::Dense || self.program.begins_densely(layer, t_max)
    }

    /// Launches of `layer`'s attention in a prefill call, as [`Program::prefill`] has them. Where the layer
    /// [is staged](Self::is_staged), keys of earlier steps are staged already.
    #[must_use]
    pub fn prefill(&self, layer: usize, extent: Extent, rows: usize, t_max: usize) -> Vec<Launch> {
        let (kind, shape) = (self.program.plan().prefill(layer), self.program.shape());
        let mut launches = self.program.prefill(layer, extent, rows, t_max);
        if !self.is_staged(layer) {
            launches.extend(self.keep(layer, Buffer::Keys, rows));
            return launches;
        }
        for value in launches.iter_mut().flat_map(|launch| &mut launch.arguments) {
            match value {
                Value::Buffer(buffer @ Buffer::Keys) => *buffer = Buffer::StagedKeys,
                Value::Buffer(buffer @ Buffer::Values) => *buffer = Buffer::StagedValues,
                Value::Buffer(_) | Value::Part(..) | Value::I32(_) => {}
            }
        }
        // A call that begins densely has no lists, and all values are there.
        let gather = Gather::new(shape, kind).filter(|_| !self.program.begins_densely(layer, t_max));
        if let Some(gather) = gather {
            let grid = gather.grid(rows);
            let buffers = [
                Buffer::Step,
                Buffer::Blocks,
                Buffer::Counts,
                Buffer::PageTable,
                Buffer::Values,
                Buffer::StagedValues,
                Buffer::Reads,
                Buffer::Tally,
            ];
            let gather = self.launch(&Unit::Gather(gather), grid, &buffers, vec![self.slots.values]);
            launches.insert(launches.len() - 1, gather);
        }
        launches.extend(self.keep(layer, Buffer::StagedKeys, rows));
        let back = WriteBack { shape };
        let grid = back.grid(rows);
        let buffers = [
            Buffer::Step,
            Buffer::PageTable,
            Buffer::StagedKeys,
            Buffer::StagedValues,
            Buffer::Keys,
            Buffer::Values,
            Buffer::Tally,
        ];
        launches.push(self.launch(&Unit::WriteBack(back), grid, &buffers, self.here()));
        launches
    }

    /// Launches of `layer`'s attention in a decoding step, as [`Program::decode`] has them.
    #[must_use]
    pub fn decode(&self, layer: usize, extent: Extent, renewal: Renewal) -> Vec<Launch> {
        let attention = self.program.decode(layer, extent, renewal);
        match self.program.plan().decode(layer) {
            LayerPlan::Dense => [self.claim(), attention].concat(),
            LayerPlan::Pruned(_) => attention,
        }
    }

    /// Launches that follow `layer`'s attention in a decoding step that renews what `renewal` says, and precede that of the
    /// next one. Nothing else of the step waits for them.
    #[must_use]
    pub fn promote(&self, layer: usize, renewal: Renewal) -> Vec<Launch> {
        let (shape, kind) = (self.program.shape(), self.program.plan().decode(layer));
        let promote = Promote::new(shape, kind);
        let trade = promote.map(|promote| self.trade(&promote)).unwrap_or_default();
        // The page of the step's token is on the GPU until it trades places.
        let mut launches: Vec<_> = self.keep(layer, Buffer::Keys, 1).into_iter().collect();
        launches.extend(Count::of(shape, kind, renewal).into_iter().map(|count| {
            let buffers = count.buffers();
            self.launch(&Unit::Count(count), Count::grid(), &buffers, vec![self.slots.keys])
        }));
        launches.extend(trade);
        launches
    }

    /// The launch that keeps those of a step's keys which later steps probe first.
    fn keep(&self, layer: usize, keys: Buffer, rows: usize) -> Option<Launch> {
        let probes = self.program.probes(layer)?;
        let buffers = [Buffer::Step, keys, Buffer::PageTable, Buffer::Probes];
        Some(self.launch(&Unit::Probes(probes), Probes::grid(rows), &buffers, Vec::new()))
    }

    /// Launches before a step of prefill, and before anything is staged for it, in each layer: the page of the token that
    /// follows the step comes to the GPU.
    #[must_use]
    pub fn claim(&self) -> Vec<Launch> {
        self.trade(&Promote::claim(self.program.shape()))
    }

    fn trade(&self, promote: &Promote) -> Vec<Launch> {
        let mut buffers = vec![Buffer::Step];
        if promote.has_list() {
            buffers.extend([Buffer::CachedBlocks, Buffer::CachedCount]);
        }
        buffers.extend([
            Buffer::PageTable,
            Buffer::Residents,
            Buffer::Reads,
            Buffer::Hand,
            Buffer::Moves,
            Buffer::Tally,
        ]);
        let numbers = [vec![self.slots.pages], self.here()].concat();
        let exchange = Unit::Exchange(Exchange { shape: self.program.shape() });
        let moved = [Buffer::Moves, Buffer::Keys, Buffer::Values];
        vec![
            self.launch(&Unit::Promote(promote.clone()), [1; 3], &buffers, numbers),
            self.launch(&exchange, Exchange::grid(), &moved, Vec::new()),
        ]
    }

    fn here(&self) -> Vec<usize> {
        vec![self.slots.keys, self.slots.values]
    }

    fn launch(&self, unit: &Unit, grid: [u32; 3], buffers: &[Buffer], numbers: Vec<usize>) -> Launch {
        let buffers = buffers.iter().map(|buffer| Value::Buffer(*buffer));
        let numbers = numbers.into_iter().map(|number| Value::I32(number as i32));
        Launch { kernel: self.units.name(unit), grid, arguments: buffers.chain(numbers).collect() }
    }
}
