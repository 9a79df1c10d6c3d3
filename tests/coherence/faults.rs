//! An allocation that fails, whichever it is: one clear error, everything given back, the next request served.

use std::sync::Arc;

use ihip_runtime::kv::{Allocate, KvError, Tier};
use ihip_tests::support::failing::{Failing, TIERS};

use super::requests::{Requests, SHAPE};

#[test]
fn whichever_allocation_fails_everything_is_given_back_and_the_next_request_is_served() {
    // Keys and values of each layer.
    let allocations = 2 * SHAPE.layers as u64;
    for (tier, which) in TIERS.into_iter().flat_map(|tier| (1..=allocations).map(move |which| (tier, which))) {
        let failing = Arc::new(Failing::at(tier, which));
        let allocator: Arc<dyn Allocate> = failing.clone();
        let Err(error) = Requests::within(1, &allocator) else { panic!("allocation {which} failed unnoticed") };
        assert!(matches!(error, KvError::Allocation { tier: named, .. } if named == tier), "{error}");
        assert_eq!(failing.asked(tier), which, "what fails is asked for once");
        assert_eq!(failing.held(), [0, 0], "after allocation {which} on the {tier} failed");

        let mut next = Requests::within(which, &allocator).expect("an allocation fails once");
        (0..500).for_each(|_| next.operate());
        let report = next.report();
        assert!(report.verified > 0 && report.wrong == 0, "{report:?} after allocation {which} on the {tier} failed");
        assert_eq!(failing.asked(tier), which + allocations, "a run has so many allocations");
        drop(next);
        assert_eq!(failing.held(), [0, 0]);
    }
}

#[test]
fn an_allocation_that_fails_is_named_with_its_bytes() {
    let allocator: Arc<dyn Allocate> = Arc::new(Failing::at(Tier::Host, 3));
    let Err(error) = Requests::within(1, &allocator) else { panic!("the third allocation on the host fails") };
    assert_eq!(
        error.to_string(),
        "the keys of layer 1 need 6400 bytes of host memory, which cannot be had: lower the budget"
    );
}
