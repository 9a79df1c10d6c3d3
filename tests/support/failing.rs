//! Memory of the tiers that is counted, and an allocation that fails.

use std::sync::atomic::{AtomicU64, Ordering};

use ihip_runtime::device::cuda::Ledger;
use ihip_runtime::kv::{Allocate, Process, Tier};

/// Both tiers.
pub const TIERS: [Tier; 2] = [Tier::Gpu, Tier::Host];

/// Counts the bytes of each tier, and fails once where it is asked to: for the CPU device and for a GPU.
#[derive(Debug, Default)]
pub struct Failing {
    /// Which allocation of which tier fails, counted from 1.
    which: Option<(Tier, u64)>,
    asked: [AtomicU64; 2],
    held: [AtomicU64; 2],
}

impl Failing {
    /// Allocation `which` of a tier fails, counted from 1.
    #[must_use]
    pub fn at(tier: Tier, which: u64) -> Self {
        Self { which: Some((tier, which)), ..Self::default() }
    }

    /// Bytes of each tier that were taken and not given back.
    #[must_use]
    pub fn held(&self) -> [u64; 2] {
        TIERS.map(|tier| self.held[tier as usize].load(Ordering::Relaxed))
    }

    /// How many allocations of a tier were asked for.
    #[must_use]
    pub fn asked(&self, tier: Tier) -> u64 {
        self.asked[tier as usize].load(Ordering::Relaxed)
    }

    fn asks(&self, tier: Tier, bytes: u64) -> bool {
        let asked = self.asked[tier as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let fails = self.which == Some((tier, asked));
        if !fails {
            self.held[tier as usize].fetch_add(bytes, Ordering::Relaxed);
        }
        !fails
    }
}

impl Ledger for Failing {
    fn take(&self, tier: Tier, bytes: u64) -> bool {
        self.asks(tier, bytes)
    }

    fn give_back(&self, tier: Tier, bytes: u64) {
        self.held[tier as usize].fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Allocate for Failing {
    fn allocate(&self, tier: Tier, count: usize) -> Option<Vec<f32>> {
        let bytes = (count * size_of::<f32>()) as u64;
        if self.asks(tier, bytes) { Process.allocate(tier, count) } else { None }
    }

    fn release(&self, tier: Tier, values: Vec<f32>) {
        self.held[tier as usize].fetch_sub(size_of_val(&*values) as u64, Ordering::Relaxed);
        Process.release(tier, values);
    }
}
