//! Decoding, and masks that are reused.

use ihip_dsl::reference::{self, Decode};
use ihip_tests::support::sample::samples;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A mask renewed at every step is that of a call with the one query.
    #[test]
    fn renewed_every_step_is_prefill(mut sample in samples(200)) {
        sample.pruning.stages.to_mut().iter_mut().for_each(|stage| stage.refresh = 1);
        let mut decode = Decode::new();
        for row in 0..sample.query_count() {
            let problem = sample.step(row);
            let decoded = decode.step(&problem);
            let called = reference::prefill(&problem);
            prop_assert_eq!(decoded.restart, (!sample.pruning.stages.is_empty()).then_some(0));
            prop_assert_eq!(&decoded.lists, &called.lists);
            prop_assert_eq!(decoded.stages, called.stages);
            prop_assert_eq!(decoded.out, called.out);
        }
    }

    /// Between renewals lists stay as they were; a restart begins from the chunks that entered that stage last.
    #[test]
    fn masks_are_kept_between_renewals(sample in samples(200)) {
        let intervals: Vec<usize> = sample.pruning.stages.iter().map(|stage| stage.refresh as usize).collect();
        let mut decode = Decode::new();
        let mut lists = None;
        let mut inputs = vec![Vec::new(); intervals.len()];
        for row in 0..sample.query_count() {
            let decoded = decode.step(&sample.step(row));
            match decoded.restart {
                None => {
                    prop_assert!(intervals.iter().all(|interval| !row.is_multiple_of(*interval)));
                    prop_assert!(decoded.stages.is_empty());
                    prop_assert_eq!(lists.as_ref().unwrap_or(&decoded.lists), &decoded.lists);
                }
                Some(restart) => {
                    prop_assert!(row.is_multiple_of(intervals[restart]));
                    prop_assert!(intervals[..restart].iter().all(|interval| !row.is_multiple_of(*interval)));
                    prop_assert_eq!(decoded.stages.len(), intervals.len() - restart);
                    if restart > 0 {
                        prop_assert_eq!(&inputs[restart], &decoded.stages[0].input);
                    }
                    for (stage, ran) in decoded.stages.iter().enumerate() {
                        inputs[restart + stage].clone_from(&ran.input);
                    }
                }
            }
            lists = Some(decoded.lists);
        }
    }
}
