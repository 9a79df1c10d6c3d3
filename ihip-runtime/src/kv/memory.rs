//! Memory of the tiers, from an allocator that can be replaced.

use std::fmt;
use std::sync::Arc;

use super::error::{Kind, KvError};
use super::pool::Tier;

/// Where the memory of both tiers comes from.
pub trait Allocate: fmt::Debug + Send + Sync {
    /// So many zeros; `None` where they cannot be had.
    fn allocate(&self, tier: Tier, count: usize) -> Option<Vec<f32>>;

    /// Takes back what [`Allocate::allocate`] gave.
    fn release(&self, tier: Tier, values: Vec<f32>);
}

/// The process's own memory for both tiers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

impl Allocate for Process {
    fn allocate(&self, _tier: Tier, count: usize) -> Option<Vec<f32>> {
        // Zeros come straight from the kernel and take no memory before they are written.
        bytemuck::allocation::try_zeroed_vec(count).ok()
    }

    fn release(&self, _tier: Tier, values: Vec<f32>) {
        drop(values);
    }
}

/// The slots of one tier, one after the other.
#[derive(Debug)]
pub(super) struct Memory {
    values: Vec<f32>,
    tier: Tier,
    /// Elements of a slot.
    width: usize,
    allocator: Arc<dyn Allocate>,
}

impl Memory {
    /// Room for `slots` slots of `width` elements, for `kind` of `layer`.
    pub(super) fn new(
        allocator: &Arc<dyn Allocate>,
        tier: Tier,
        (slots, width): (usize, usize),
        (layer, kind): (usize, Kind),
    ) -> Result<Self, KvError> {
        let bytes = slots as u64 * width as u64 * size_of::<f32>() as u64;
        let values = slots.checked_mul(width).and_then(|count| allocator.allocate(tier, count));
        let values = values.ok_or(KvError::Allocation { kind, layer, tier, bytes })?;
        Ok(Self { values, tier, width, allocator: Arc::clone(allocator) })
    }

    pub(super) fn slot(&self, slot: u32) -> &[f32] {
        &self.values[slot as usize * self.width..][..self.width]
    }

    pub(super) fn slot_mut(&mut self, slot: u32) -> &mut [f32] {
        &mut self.values[slot as usize * self.width..][..self.width]
    }

    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.values) as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.allocator.release(self.tier, std::mem::take(&mut self.values));
    }
}
