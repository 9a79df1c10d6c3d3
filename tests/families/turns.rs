//! Layers whose key-value heads take turns at the first stage: a renewal that is spread over steps.

use ihip_dsl::{Plan, Refresh};
use proptest::prelude::*;

use super::whole::decoding_by;
use super::{Layer, all_layers, check_with, quantised_layers};

/// The first renews everything, and then every head has its turn.
const STEPS: usize = 10;

/// A layer with intervals that leave a step to each head, and its plan where masks are renewed in turn.
pub(super) fn in_turns(layer: &Layer) -> (Plan, Layer) {
    let mut layer = layer.clone();
    for (stage, refresh) in layer.pruning.stages.to_mut().iter_mut().zip([8, 4, 2]) {
        stage.refresh = refresh;
    }
    (layer.plan_renewed(Refresh::Staggered), layer)
}

#[test]
fn lists_of_heads_that_take_turns_are_the_references() {
    let layers = all_layers().into_iter().chain(quantised_layers()).map(|layer| in_turns(&layer));
    let layers: Vec<Layer> = layers.filter(|(plan, _)| plan.turns(0) > 1).map(|(_, layer)| layer).collect();
    assert!(layers.len() > 12, "{} layers", layers.len());
    let attention = |layer: &Layer| layer.attention(&in_turns(layer).0);
    check_with(&layers, attention, 1, &(60..500_usize, any::<u64>()), |layer, attention, drawn| {
        let (plan, _) = in_turns(layer);
        let turns = (0..STEPS).filter(|&step| plan.renewal(0, step).turn.is_some());
        prop_assert_eq!(turns.count(), layer.heads.1 as usize);
        decoding_by(layer, attention, drawn, STEPS, &plan)
    });
}
