//! Which blocks decoding steps attend to: lists in place of those that scans leave, and the pages that lists come to.
//!
//! Random keys select nothing that stays from step to step, as the keys of a text do. So a measurement over random keys
//! hands over the lists of a text: scans run and leave theirs where they are, attention and moves read others.

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use ihip_dsl::LayerPlan;
use ihip_dsl::emit::{Buffer as Name, Program, Value};

use super::cache::CudaCache;
use super::launch::Operand;
use super::ledger::Stream;
use super::memory::Buffer;
use crate::Result;
use crate::kv::trace::PagesRead;
use crate::session::Phase;

/// Lists of every layer, replaced from step to step.
#[derive(Debug)]
pub(super) struct GivenLists {
    /// i32, of each layer after the other: its lists, then how many entries of each count.
    words: Arc<Buffer>,
    /// Of each layer with lists: its first word, lists, and entries of a list.
    layers: Vec<Option<[usize; 3]>>,
}

impl GivenLists {
    /// For decoding steps of `program`; no entry of any list counts yet.
    pub(super) fn new(stream: &Stream, program: &Program) -> Result<Self> {
        let plan = program.plan();
        let mut words = 0;
        let layers = (0..plan.layers()).map(|layer| match plan.decode(layer) {
            LayerPlan::Pruned(pruned) if !pruned.stages.is_empty() => {
                let (first, lists) = (words, program.lists(pruned, 1));
                words += lists * (pruned.keep_blocks + 1);
                Some([first, lists, pruned.keep_blocks])
            }
            LayerPlan::Pruned(_) | LayerPlan::Dense => None,
        });
        let layers = layers.collect();
        Ok(Self { words: Buffer::new(stream, "given block lists", words * size_of::<i32>(), true)?, layers })
    }

    /// Puts the list of each layer where the kernels read it, the same for all rankings of a layer.
    ///
    /// # Panics
    /// Where a list is longer than its layer keeps.
    pub(super) fn write(&self, lists: &[Vec<i32>]) -> Result<()> {
        let mut words = Vec::with_capacity(self.words.bytes() / size_of::<i32>());
        for ([_, count, keep], list) in
            self.layers.iter().zip(lists).filter_map(|(layer, list)| Some((layer.as_ref()?, list)))
        {
            assert!(list.len() <= *keep, "a list of {} entries where {keep} are kept", list.len());
            for _ in 0..*count {
                words.extend_from_slice(list);
                words.resize(words.len() + keep - list.len(), -1);
            }
            words.resize(words.len() + count, list.len() as i32);
        }
        self.words.write(0, &words)
    }

    /// What stands for a list that `layer` attends to, or for its counts; `None` for anything else.
    pub(super) fn operand(&self, value: Value, layer: usize) -> Option<Operand> {
        let [first, lists, keep] = self.layers[layer]?;
        let word = match value {
            Value::Buffer(Name::CachedBlocks) => first,
            Value::Buffer(Name::CachedCount) => first + lists * keep,
            Value::Buffer(_) | Value::Part(..) | Value::I32(_) => return None,
        };
        Some(Operand::Address(self.words.address() + (word * size_of::<i32>()) as CUdeviceptr))
    }

    /// Where they lie.
    pub(super) const fn words(&self) -> &Arc<Buffer> {
        &self.words
    }
}

impl CudaCache {
    /// The pages that `layer` attended to in the last step, of keys as of values, where that is recorded and the step
    /// was one of decoding. Keys that the scan alone read are not among them: no kernel notes these.
    pub(super) fn pages_read(&self, layer: usize) -> Result<PagesRead> {
        let decodes = matches!(self.step.phase, Phase::Decode { .. });
        if !(self.record_pages && decodes) {
            return Ok(PagesRead::default());
        }
        let (page, tokens) = (self.program.plan().geometry().page as usize, self.step.start + self.step.rows);
        let pages = tokens.div_ceil(page);
        let LayerPlan::Pruned(pruned) = self.program.plan().decode(layer) else {
            let all: Vec<u32> = (0..pages as u32).collect();
            return Ok([all.clone(), all]);
        };
        let mut is_read = vec![false; pages];
        let mut read = |first: usize, end: usize| {
            is_read[first.min(tokens) / page..end.min(tokens).div_ceil(page)].fill(true);
        };
        read(0, pruned.sink);
        read(tokens.saturating_sub(pruned.window), tokens);
        if let Some(lists) = self.lists(layer)? {
            for (ranking, count) in lists.counts.iter().enumerate() {
                for first in &lists.blocks[ranking * lists.width..][..*count as usize] {
                    read(*first as usize, *first as usize + pruned.block);
                }
            }
        }
        let read: Vec<u32> = (0..pages as u32).filter(|number| is_read[*number as usize]).collect();
        Ok([read.clone(), read])
    }
}
