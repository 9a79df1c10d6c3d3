//! One request: a prompt is read in chunks, then tokens are chosen one by one.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ihip_dsl::Plan;
use ihip_runtime::device::{BlockLists, Compilation, HostAllocation, Sampling};
use ihip_runtime::kv::trace::PagesRead;
use ihip_runtime::kv::{Placement, Traffic};
use ihip_runtime::session::{Phase, SEGMENT};
use ihip_runtime::{Device, Session, Step};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::llama::{LOGIT_ROWS, Llama, Workspace};
use crate::{Error, Result};

/// A wish to stop, raised from another thread or a signal handler.
#[derive(Debug, Default)]
pub struct Interrupt(AtomicBool);

impl Interrupt {
    /// Nothing has been wished yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Asks whoever checks to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Interrupted`] once it has been raised.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// What a request reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Positions: prompt and new tokens together.
    pub capacity: usize,
    /// Prompt tokens of one step: a multiple of 64 that divides 8,192, or a multiple of 8,192.
    pub chunk: usize,
}

/// A request on its way: cache, activations, position and refresh counter.
pub struct Generation<'a, D: Device> {
    model: &'a Llama<D>,
    device: &'a mut D,
    interrupt: &'a Interrupt,
    cache: D::Cache,
    workspace: Workspace<D>,
    session: Session,
    chunk: usize,
    last: Option<Step>,
    /// Whether decoding steps are recorded and replayed.
    replays: bool,
    /// Whether block lists are recorded.
    records: bool,
}

impl<'a, D: Device> Generation<'a, D> {
    /// Allocates cache and activations.
    ///
    /// # Errors
    /// Out of memory, with the numbers.
    pub fn new(
        model: &'a Llama<D>,
        device: &'a mut D,
        plan: &Arc<Plan>,
        extent: Extent,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let cache = device.cache(plan, extent.capacity)?;
        let workspace = model.workspace(device, extent.chunk)?;
        let session = Session::new(Arc::clone(plan));
        let (chunk, last) = (extent.chunk, None);
        Ok(Self { model, device, interrupt, cache, workspace, session, chunk, last, replays: true, records: false })
    }

    /// Tokens read and written so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.session.length()
    }

    /// Bytes that can still be allocated beside this request; `None` where nothing tells.
    ///
    /// # Errors
    /// Where the device fails to answer.
    pub fn available_bytes(&self) -> Result<Option<u64>> {
        Ok(self.device.available_bytes()?)
    }

    /// What compiling the device's kernels has taken so far.
    #[must_use]
    pub fn compilation(&self) -> Compilation {
        self.device.compilation()
    }

    /// What allocating the part of the cache took that lies with the host; nothing where none does.
    #[must_use]
    pub fn host_allocation(&self) -> Option<HostAllocation> {
        self.device.host_allocation(&self.cache)
    }

    /// Whether [`Generation::pages_read`] has the pages of the decoding steps to come; it has not at first.
    pub fn record_pages(&mut self, record: bool) {
        self.device.record_pages(&mut self.cache, record);
    }

    /// The pages that the last decoding step read in `layer`, asked for once after each.
    ///
    /// # Errors
    /// Those of the device.
    pub fn pages_read(&mut self, layer: usize) -> Result<PagesRead> {
        Ok(self.device.pages_read(&self.cache, layer)?)
    }

    /// The device, and the request's keys, values and masks.
    pub const fn device_and_cache(&mut self) -> (&mut D, &mut D::Cache) {
        (self.device, &mut self.cache)
    }

    /// Whether decoding steps run as the device records them, as they do at first, or each operation on its own.
    pub const fn replay(&mut self, replays: bool) {
        self.replays = replays;
    }

    /// What the cache did so far.
    ///
    /// # Errors
    /// Those of the device.
    pub fn traffic(&mut self) -> Result<Traffic> {
        Ok(self.device.traffic(&self.cache)?)
    }

    /// Where the tokens are that the steps before the last one wrote, the mean over layers.
    ///
    /// # Errors
    /// Those of the device.
    pub fn residence(&mut self) -> Result<Placement> {
        Ok(self.device.residence(&self.cache)?)
    }

    /// Whether [`Generation::block_lists`] has those of the steps to come; it has not at first. As long as it has, prompts are
    /// read in steps of one call.
    pub fn record_masks(&mut self, record: bool) {
        self.records = record;
        self.device.record_masks(&mut self.cache, record);
    }

    /// The steps in which the next `tokens` prompt tokens are read.
    ///
    /// # Errors
    /// Where the chunk does not divide a segment.
    pub fn prefill_steps(&self, tokens: usize) -> Result<Vec<Step>> {
        let chunk = if self.records { self.chunk.min(SEGMENT) } else { self.chunk };
        Ok(self.session.prefill_steps(tokens, chunk)?)
    }

    /// Runs one of [`Generation::prefill_steps`]; `tokens` are those of the whole text from position 0.
    ///
    /// # Errors
    /// Those of the device, or [`Error::Interrupted`] between two layers.
    ///
    /// # Panics
    /// Where `tokens` end before the step, or the step is longer than [`Extent::chunk`].
    pub fn prefill(&mut self, step: Step, tokens: &[u32]) -> Result<()> {
        let Self { model, device, cache, workspace, interrupt, .. } = self;
        device.begin(cache, &step, &tokens[step.start..step.start + step.rows])?;
        model.forward(device, cache, workspace, &step, &mut || interrupt.check())?;
        self.session.advance(&step);
        self.last = Some(step);
        Ok(())
    }

    /// Runs `token` at the next position and computes the logits that follow it.
    ///
    /// # Errors
    /// Those of the device, or [`Error::Interrupted`] before anything has run.
    pub fn decode(&mut self, token: u32) -> Result<()> {
        let Self { model, device, cache, workspace, interrupt, replays, .. } = self;
        interrupt.check()?;
        let step = self.session.decode_step();
        device.begin(cache, &step, &[token])?;
        let mut operations = |device: &mut D, cache: &mut D::Cache| {
            // What is being recorded must run to its end: nothing stops it between layers.
            model.forward(device, cache, workspace, &step, &mut || Ok::<_, ihip_runtime::Error>(()))?;
            model.logits(device, workspace, 0..1)
        };
        if *replays {
            device.replay(cache, &step, &mut operations)?;
        } else {
            operations(device, cache)?;
        }
        self.session.advance(&step);
        self.last = Some(step);
        Ok(())
    }

    /// The step that ran last.
    ///
    /// # Panics
    /// Before the first step.
    #[must_use]
    pub fn last_step(&self) -> &Step {
        self.last.as_ref().expect("a step has run")
    }

    /// Draws the token that follows the last one.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// Before the first step.
    pub fn sample(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let Step { rows, phase, .. } = self.last_step();
        if *phase == Phase::Prefill {
            let last = rows - 1..*rows;
            self.model.logits(self.device, &mut self.workspace, last)?;
        }
        let draw = sampler.draw();
        Ok(self.device.sample(self.workspace.logits(), &sampler.sampling, draw)?)
    }

    /// Logits of `rows` of the last step, `[rows, vocabulary]`, handed over in pieces of whole rows.
    ///
    /// # Errors
    /// Those of the device, or [`Error::Interrupted`].
    ///
    /// # Panics
    /// Where the last step has fewer rows.
    pub fn logits(&mut self, rows: Range<usize>, piece: &mut dyn FnMut(Range<usize>, &[f32])) -> Result<()> {
        let mut start = rows.start;
        while start < rows.end {
            self.interrupt.check()?;
            let (_, of_call) = self.workspace.call_of(start);
            let end = rows.end.min(start + LOGIT_ROWS).min(of_call.end);
            self.model.logits(self.device, &mut self.workspace, start..end)?;
            piece(start..end, &self.device.read(self.workspace.logits(), end - start)?);
            start = end;
        }
        Ok(())
    }

    /// The block lists with which the last step attended in `layer`; `None` for a dense layer.
    ///
    /// # Errors
    /// Those of the device.
    pub fn block_lists(&mut self, layer: usize) -> Result<Option<BlockLists>> {
        Ok(self.device.block_lists(&self.cache, layer)?)
    }
}

/// Chooses tokens; the same seed gives the same draws.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler whose draws follow from `seed` alone.
    #[must_use]
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next number in [0, 1), a multiple of 2⁻²⁴: every such number is an f32.
    fn draw(&mut self) -> f32 {
        (self.random.next_u32() >> 8) as f32 / (1 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draws(seed: u64) -> Vec<f32> {
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 1.0 }, seed);
        (0..64).map(|_| sampler.draw()).collect()
    }

    proptest! {
        #[test]
        fn draws_lie_in_the_unit_interval_and_follow_from_the_seed(seed: u64) {
            let first = draws(seed);
            prop_assert!(first.iter().all(|draw| (0.0..1.0).contains(draw)));
            prop_assert_eq!(&draws(seed), &first);
            prop_assert_ne!(draws(seed ^ 1), first);
        }
    }

    #[test]
    fn an_interrupt_stays_raised() {
        let interrupt = Interrupt::new();
        assert!(interrupt.check().is_ok());
        interrupt.raise();
        assert!(matches!(interrupt.check(), Err(Error::Interrupted)));
        assert!(matches!(interrupt.check(), Err(Error::Interrupted)));
    }
}
