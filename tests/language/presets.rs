//! The published settings, as the declarations say them.

use ihip_dsl::{KvType, LayerPruning, Phases, Plan, Refresh};
use ihip_model::presets::{Paper3k, Paper3kFast, Paper3kFlash, Paper3kStaggered, Paper5k};
use ihip_model::shapes::KNOWN_SHAPES;
use ihip_model::{Pipeline, Pruning, registry};

/// How a layer of a published setting prunes, in either phase.
fn pruned(phases: &Phases) -> &LayerPruning {
    assert_eq!(phases.prefill, phases.decode);
    phases.prefill.pruned().expect("nothing is dense")
}

fn refresh(pipeline: &Pipeline) -> Vec<u32> {
    pruned(pipeline.base()).stages.iter().map(|stage| stage.refresh).collect()
}

#[test]
fn paper3k_is_what_the_paper_says() {
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false }, {
        insta::assert_debug_snapshot!("paper3k", Paper3k::pipeline());
    });
}

#[test]
fn staggered_is_flash_renewed_in_turn() {
    let (flash, staggered) = (Paper3kFlash::pipeline(), Paper3kStaggered::pipeline());
    assert_eq!([flash, staggered].map(Pipeline::refresh), [Refresh::Together, Refresh::Staggered]);
    assert_eq!(staggered.base(), flash.base());
    for layer in 0..4 {
        assert_eq!(staggered.layer(layer), flash.layer(layer));
    }
}

#[test]
fn fast_and_flash_differ_in_their_refresh_intervals_alone() {
    let base = Paper3k::pipeline();
    assert_eq!(refresh(base), [16, 8, 4]);
    for (other, intervals) in [(Paper3kFast::pipeline(), [32, 16, 8]), (Paper3kFlash::pipeline(), [96, 32, 8])] {
        assert_eq!(refresh(other), intervals);
        for layer in 0..4 {
            let mut same = pruned(other.layer(layer)).clone();
            for (stage, of_base) in same.stages.to_mut().iter_mut().zip(pruned(base.base()).stages.iter()) {
                stage.refresh = of_base.refresh;
            }
            assert_eq!(same, *pruned(base.layer(layer)));
        }
    }
}

#[test]
fn paper5k_has_smaller_first_chunks_and_one_budget() {
    let pipeline = Paper5k::pipeline();
    let stages: Vec<_> = pruned(pipeline.base()).stages.iter().map(|stage| (stage.chunk, stage.keep)).collect();
    assert_eq!(stages, [(64, None), (32, Some(32_768)), (16, Some(16_384))]);
    assert_eq!([0, 2, 3].map(|layer| pruned(pipeline.layer(layer)).keep), [4_096; 3]);
    assert_ne!(pipeline.layer(2), pipeline.layer(3));
}

#[test]
fn every_preset_says_where_it_comes_from_and_plans_for_every_known_model() {
    let presets = registry::all();
    assert!(presets.len() > 9, "{}", presets.len());
    for pipeline in presets {
        let first = pipeline.doc().lines().next().unwrap_or_default();
        let sources = ["(arXiv ", "Our own"];
        assert!(sources.iter().any(|source| first.contains(source)), "{}: {first}", pipeline.name());
        for shape in KNOWN_SHAPES {
            let planned = Plan::new(pipeline, shape.geometry(KvType::Bf16), shape.frequencies(), shape.layers);
            assert!(planned.is_ok(), "{} for {}", pipeline.name(), shape.name);
        }
    }
}
