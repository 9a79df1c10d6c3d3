//! A cache of two tiers never gives a wrong row: every row holds what follows from its name, requests come, grow, fork
//! and are cancelled in any order while pages move, and every row that is read is compared.
//!
//! `IHIP_COHERENCE_OPERATIONS` sets how many operations are drawn, `IHIP_COHERENCE_SEED` from which number: the same two
//! give the same run.

mod faults;
mod requests;

use ihip_runtime::kv::{Counts, Tier};
use requests::{Report, Requests};

/// Operations of a run that nobody asked to be longer.
const OPERATIONS: usize = 100_000;

fn variable(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not {text:?}")),
        Err(_) => default,
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "how much was verified is what a long run is for")]
fn no_row_is_wrong_after_any_operations() {
    let (operations, seed) = (variable("IHIP_COHERENCE_OPERATIONS", OPERATIONS), variable("IHIP_COHERENCE_SEED", 1));
    let mut requests = Requests::new(seed as u64);
    for _ in 0..operations {
        requests.operate();
    }
    let Report { verified, wrong, refused, cancelled, forked } = requests.report();
    let Counts { hits, misses, promotions, evictions } = requests.counts();
    println!(
        "seed {seed}, {operations} operations: {verified} rows verified, {wrong} wrong; {hits} hits, {misses} misses, \
         {promotions} promotions, {evictions} evictions, {forked} forks, {cancelled} cancelled, {refused} refused"
    );
    assert_eq!(wrong, 0, "rows are wrong: IHIP_COHERENCE_OPERATIONS={operations} IHIP_COHERENCE_SEED={seed} again");
    // A run that never did what it is about shows nothing.
    let least = operations as u64 / 100;
    for (what, count) in [
        ("hits", hits),
        ("misses", misses),
        ("promotions", promotions),
        ("evictions", evictions),
        ("forks", forked),
        ("cancelled requests", cancelled),
        ("refusals", refused),
    ] {
        assert!(count >= least, "{count} {what} in {operations} operations");
    }
    assert_eq!(hits + misses, verified);
    requests.cancel_all();
    assert_eq!((requests.taken(Tier::Gpu), requests.taken(Tier::Host)), (0, 0));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut requests = Requests::new(seed);
        (0..2_000).for_each(|_| requests.operate());
        (requests.report(), requests.counts())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_wrong_row_is_found_in_either_tier() {
    for tier in [Tier::Gpu, Tier::Host] {
        let mut requests = Requests::new(3);
        while !requests.spoil(tier) {
            requests.operate();
        }
        requests.read_all();
        assert!(requests.report().wrong > 0, "a spoilt row on the {tier}");
    }
}
