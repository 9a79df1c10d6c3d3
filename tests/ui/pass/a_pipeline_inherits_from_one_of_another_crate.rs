use ihip_model::{Pruning, presets, pruning, registry};

pruning! {
    /// Half the budget in the last cut.
    pub Mine: presets::Paper3k { attend { keep 1_024 } }
}

fn main() {
    let (mine, parent) = (Mine::pipeline(), presets::Paper3k::pipeline());
    let (own, inherited) = (mine.base().prefill.pruned().unwrap(), parent.base().prefill.pruned().unwrap());
    assert_eq!((own.keep, inherited.keep), (1_024, 2_048));
    assert_eq!(own.stages, inherited.stages);
    assert_eq!(mine.layer(0), parent.layer(0));
    assert_eq!(mine.doc(), "Half the budget in the last cut.");
    assert_eq!(registry::find("Mine"), Some(mine));
}
