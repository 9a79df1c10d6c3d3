//! `scan`: the scores of every stage, for prefill and for decoding, against the reference's.

use ihip_dsl::emit::{Buffer, Family, Launch};
use ihip_dsl::reference::{self, StageOutcome};
use ihip_dsl::{AttendRope, Descent, Halving, KvType, LayerPruning, Representative, ScanRope, Scores};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::tolerance;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::{Data, Layer, all_layers, call, check, layer, stage};

fn pruned() -> Vec<Layer> {
    all_layers().into_iter().filter(|layer| !layer.pruning.stages.is_empty()).collect()
}

/// The float behind an ordered integer; `None` where nobody scored.
pub(super) fn score(bits: i32) -> Option<f32> {
    let bits = bits.cast_unsigned();
    let float = if bits >> 31 == 1 { bits & 0x7fff_ffff } else { !bits };
    (bits != 0).then(|| f32::from_bits(float))
}

/// Runs the stages one by one and compares the scores that each leaves before it is cut.
fn compare(
    attention: &mut Attention,
    pruning: &LayerPruning,
    launches: &[Launch],
    stages: &[StageOutcome],
    tolerance: f32,
) -> Result<(), TestCaseError> {
    let mut rest = attention.launch_appends(launches);
    for (number, stage) in stages.iter().enumerate() {
        let scans = rest.iter().take_while(|launch| attention.family(launch) == Family::Scan).count();
        let last = &rest[scans - 1];
        attention.launch(&rest[..scans]);
        let scores = attention.read_i32(Buffer::Scores);
        let stride = match last.arguments.last() {
            Some(ihip_dsl::emit::Value::I32(stride)) => *stride as usize,
            other => return Err(TestCaseError::fail(format!("no stride but {other:?}"))),
        };
        // A half taken otherwise changes a distribution everywhere.
        let soft = pruning.stages[number].scoring.scores == Scores::Soft;
        for (block, expected) in stage.scores.iter().enumerate() {
            if soft && expected.closest.iter().any(|&closest| closest < tolerance) {
                continue;
            }
            for (chunk, (&expected, &closest)) in expected.scores.iter().zip(&expected.closest).enumerate() {
                let got = score(scores[block * stride + chunk]);
                let place = format!("stage {number}, block {block}, chunk {chunk}: {got:?} for {expected}");
                match got {
                    None => prop_assert_eq!(expected, reference::scan::NEVER_SCORED, "{}", place),
                    // Where two halves score nearly alike, which of them is descended is a matter of rounding.
                    Some(_) if closest < tolerance => {}
                    Some(got) => prop_assert!((got - expected).abs() <= tolerance, "{}", place),
                }
            }
        }
        // A cut between two nearly equal scores may go either way, and then the next stage sees other chunks.
        if stage.cuts.iter().any(|cut| cut.margin.is_some_and(|margin| margin > 0.0 && margin < tolerance)) {
            return Ok(());
        }
        if stage.scores.iter().any(|scores| scores.closest.iter().any(|&closest| closest < tolerance)) {
            return Ok(());
        }
        attention.launch(&rest[scans..=scans]);
        rest = &rest[scans + 1..];
    }
    Ok(())
}

#[test]
fn prefill_scores_are_the_references() {
    check(&pruned(), 3, &(call(), any::<u64>()), |layer, attention, ((first, rows, spare), seed)| {
        let data = Data::new(layer, first, rows, seed);
        let qkv = data.cache(layer, attention);
        let t_max = first + rows + spare;
        let frequencies = layer.frequencies();
        let outcome = reference::prefill(&data.problem(layer, &frequencies, t_max));
        let launches = attention.begin_prefill(first, t_max, &qkv);
        let result = compare(attention, &layer.pruning, &launches, &outcome.stages, tolerance::SUM);
        attention.zero_scores();
        result
    });
}

#[test]
fn decoding_scores_are_the_references() {
    check(&pruned(), 4, &(0..600_usize, 0..30_usize, any::<u64>()), |layer, attention, (position, spare, seed)| {
        let data = Data::new(layer, position, 1, seed);
        let qkv = data.cache(layer, attention);
        let t_max = position + 1 + spare;
        let frequencies = layer.frequencies();
        let outcome = reference::prefill(&data.problem(layer, &frequencies, t_max));
        let launches = attention.begin_decode(position, t_max, Some(0), &qkv);
        let result = compare(attention, &layer.pruning, &launches, &outcome.stages, tolerance::SUM);
        attention.zero_scores();
        result
    });
}

/// Small integers make exact products, equal for many halves: then every score is exactly the reference's only where
/// every tie went the way that the reference's went.
#[test]
fn ties_go_the_references_way() {
    let stages = [stage(0, 32, 64, 4), stage(192, 8, 32, 2)];
    let modes = (ScanRope::None, AttendRope::Streaming);
    let each = layer((4, 2, 64), KvType::Bf16, 16, (16, 64), &stages, 64, modes);
    let mut together = each.clone();
    for stage in together.pruning.stages.to_mut() {
        let halving = Halving { descent: Descent::KvGroup, ..Halving::default() };
        stage.scoring.representative = Representative::Halving(halving);
    }
    check(
        &[each, together],
        8,
        &(call(), any::<bool>(), any::<u64>()),
        |layer, attention, ((first, rows, spare), one, seed)| {
            let mut data = Data::new(layer, first, if one { 1 } else { rows }, seed);
            for x in data.queries.iter_mut().chain(&mut data.keys) {
                *x = x.round();
            }
            let qkv = data.cache(layer, attention);
            let t_max = first + data.rows + spare;
            let frequencies = layer.frequencies();
            let outcome = reference::prefill(&data.problem(layer, &frequencies, t_max));
            let launches = match one {
                true => attention.begin_decode(first, t_max, Some(0), &qkv),
                false => attention.begin_prefill(first, t_max, &qkv),
            };
            let result = compare(attention, &layer.pruning, &launches, &outcome.stages, 0.0);
            attention.zero_scores();
            result
        },
    );
}
