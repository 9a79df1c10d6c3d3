//! Choices other than the declared one: what a kernel computes does not hang on them.

use ihip_dsl::emit::{Activation, Extent, Instructions, Program};
use ihip_dsl::tuning::{Tunable, Tuning, Tunings};
use ihip_dsl::{Plan, Renewal};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use proptest::prelude::*;

use super::{Layer, ROWS, TOKENS, call, check_with, decode, layers, scored_layers, whole};

/// Another choice for each kernel of which something can be chosen: the one at `share` of its space.
fn chosen(tunable: &[Tunable], share: f64) -> Tunings {
    let other = |tunable: &Tunable| {
        let others: Vec<Tuning> = tunable.space.iter().copied().filter(|tuning| *tuning != tunable.tuning).collect();
        let at = share * (others.len() as f64 - 1.0);
        Some((tunable.site.clone(), *others.get(at.round() as usize)?))
    };
    tunable.iter().filter_map(other).collect()
}

fn tuned(plan: &Plan, tunings: Tunings) -> Program {
    Program::with(plan, Activation::F32, Instructions::Portable, tunings).expect("a usual head")
}

fn attention(plan: &Plan, share: f64) -> Attention {
    let declared = Program::new(plan, Activation::F32).expect("a usual head");
    let program = tuned(plan, chosen(&declared.tunable(), share));
    let extent = Extent { rows: ROWS, tokens: TOKENS };
    let pages = TOKENS.div_ceil(plan.geometry().page as usize);
    Attention::running(host(), program, extent, pages)
}

/// Layers that have every family of which something can be chosen.
fn tunable_layers() -> Vec<Layer> {
    let mut layers = layers();
    layers.truncate(3);
    layers.extend(scored_layers().into_iter().take(2));
    layers
}

fn dense_plan(layer: &Layer) -> Plan {
    Plan::dense(layer.geometry(), layer.frequencies(), 1)
}

#[test]
fn steps_with_other_choices_are_the_references() {
    for share in [0.0, 1.0] {
        let tuned = |layer: &Layer| attention(&layer.plan(), share);
        check_with(&tunable_layers(), tuned, 1, &(call(), any::<u64>()), whole::prefill);
        check_with(&tunable_layers(), tuned, 1, &(60..500_usize, any::<u64>()), whole::decoding);
    }
    let tuned = |layer: &Layer| attention(&dense_plan(layer), 0.5);
    check_with(&tunable_layers(), tuned, 2, &(0..600_usize, any::<u64>()), decode::dense);
}

#[test]
#[ignore = "an hour of the emulator: all choices of all layers"]
fn steps_with_any_choice_are_the_references() {
    for number in 0..=16 {
        let share = f64::from(number) / 16.0;
        let tuned = |layer: &Layer| attention(&layer.plan(), share);
        check_with(&tunable_layers(), tuned, 1, &(call(), any::<u64>()), whole::prefill);
        check_with(&tunable_layers(), tuned, 1, &(60..500_usize, any::<u64>()), whole::decoding);
        let tuned = |layer: &Layer| attention(&dense_plan(layer), share);
        check_with(&tunable_layers(), tuned, 2, &(0..600_usize, any::<u64>()), decode::dense);
    }
}

#[test]
fn every_choice_makes_a_kernel_or_a_grid_of_its_own() {
    let mut families: Vec<String> = Vec::new();
    for layer in layers().into_iter().chain(scored_layers()) {
        for plan in [layer.plan(), dense_plan(&layer)] {
            let declared = Program::new(&plan, Activation::F32).expect("a usual head");
            for tunable in declared.tunable() {
                assert!(tunable.space.contains(&tunable.tuning), "{tunable:?}");
                families.push(format!("{:?}", tunable.tuning).split('(').next().unwrap_or_default().to_owned());
                let mut seen = Vec::new();
                for &tuning in &tunable.space {
                    let tunings = Tunings::default().with(&tunable.site, tuning);
                    let program = tuned(&plan, tunings);
                    let kernel = program.kernels().into_iter().find(|kernel| kernel.name == tunable.kernel);
                    let kernel = kernel.expect("a choice does not rename its kernel");
                    let extent = Extent { rows: 8192, tokens: 1 << 20 };
                    let restart = plan.decode(0).clone();
                    let restart = matches!(restart, ihip_dsl::LayerPlan::Pruned(layer) if !layer.stages.is_empty());
                    let mut launches = program.decode(0, extent, restart.then_some(0).into());
                    launches.extend(program.decode(0, extent, Renewal::default()));
                    launches.extend(program.decode(0, extent, Renewal::default()));
                    launches.extend(program.prefill(0, extent, 2048, 1 << 20));
                    let launch = launches.into_iter().find(|launch| launch.kernel == kernel.name);
                    let made = (kernel.text, launch.expect("it is launched").grid);
                    assert!(!seen.contains(&made), "{}: {tuning} is another choice by another name", tunable.site);
                    seen.push(made);
                }
            }
        }
    }
    families.sort_unstable();
    families.dedup();
    assert_eq!(families, ["AttendDecode", "AttendPrefill", "DenseDecode", "ScanDecode", "ScanPrefill"]);
}

#[test]
fn a_choice_outside_of_the_space_is_as_if_there_were_none() {
    let layer = &layers()[1];
    let declared = Program::new(&layer.plan(), Activation::F32).expect("a usual head");
    let outside = |tunable: &Tunable| {
        let mut tuning = tunable.tuning;
        match &mut tuning {
            Tuning::ScanDecode(tuning) => tuning.threads = 100,
            Tuning::ScanPrefill(tuning) => tuning.chunks = 7,
            Tuning::AttendDecode(tuning) => tuning.keys = 1 << 20,
            Tuning::AttendPrefill(tuning) => tuning.rows = 0,
            Tuning::DenseDecode(tuning) => tuning.stages = 0,
        }
        (tunable.site.clone(), tuning)
    };
    let tunings: Tunings = declared.tunable().iter().map(outside).collect();
    let program = tuned(&layer.plan(), tunings);
    assert_eq!(program.kernels(), declared.kernels());
    // One for another family neither.
    let other = Tuning::DenseDecode(ihip_dsl::tuning::DenseDecode { warps: 4, stages: 3, blocks: 128 });
    let tunings: Tunings = declared.tunable().iter().map(|tunable| (tunable.site.clone(), other)).collect();
    let program = tuned(&layer.plan(), tunings);
    assert_eq!(program.kernels(), declared.kernels());
}
