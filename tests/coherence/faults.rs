//! An allocation that fails, whichever it is: one clear error, everything given back, the next request served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ihip_runtime::kv::{Allocate, KvError, Process, Tier};

use super::requests::{Requests, SHAPE};

/// Counts what is held in each tier, and fails once.
#[derive(Debug, Default)]
struct Failing {
    /// Which allocation fails, counted from 1; none at 0.
    which: u64,
    asked: AtomicU64,
    held: [AtomicU64; 2],
}

impl Failing {
    fn held(&self, tier: Tier) -> &AtomicU64 {
        &self.held[usize::from(tier == Tier::Host)]
    }
}

impl Allocate for Failing {
    fn allocate(&self, tier: Tier, count: usize) -> Option<Vec<f32>> {
        if self.asked.fetch_add(1, Ordering::Relaxed) + 1 == self.which {
            return None;
        }
        self.held(tier).fetch_add(count as u64, Ordering::Relaxed);
        Process.allocate(tier, count)
    }

    fn release(&self, tier: Tier, values: Vec<f32>) {
        self.held(tier).fetch_sub(values.len() as u64, Ordering::Relaxed);
        Process.release(tier, values);
    }
}

#[test]
fn whichever_allocation_fails_everything_is_given_back_and_the_next_request_is_served() {
    // Keys and values of each layer, in two tiers.
    let allocations = 4 * SHAPE.layers as u64;
    for which in 1..=allocations {
        let failing = Arc::new(Failing { which, ..Failing::default() });
        let allocator: Arc<dyn Allocate> = failing.clone();
        let held = || [Tier::Gpu, Tier::Host].map(|tier| failing.held(tier).load(Ordering::Relaxed));
        let Err(error) = Requests::within(1, &allocator) else { panic!("allocation {which} failed unnoticed") };
        assert!(matches!(error, KvError::Allocation { .. }), "{error}");
        assert_eq!(failing.asked.load(Ordering::Relaxed), which, "what fails is asked for once");
        assert_eq!(held(), [0, 0], "after allocation {which} failed");

        let mut next = Requests::within(which, &allocator).expect("an allocation fails once");
        (0..500).for_each(|_| next.operate());
        let report = next.report();
        assert!(report.verified > 0 && report.wrong == 0, "{report:?} after allocation {which} failed");
        assert_eq!(failing.asked.load(Ordering::Relaxed), which + allocations, "a run has so many allocations");
        drop(next);
        assert_eq!(held(), [0, 0]);
    }
}

#[test]
fn an_allocation_that_fails_is_named_with_its_bytes() {
    let allocator: Arc<dyn Allocate> = Arc::new(Failing { which: 6, ..Failing::default() });
    let Err(error) = Requests::within(1, &allocator) else { panic!("the sixth allocation fails") };
    assert_eq!(
        error.to_string(),
        "the keys of layer 1 need 6400 bytes of host memory, which cannot be had: lower the budget"
    );
}
