use ihip_dsl::ScanRope;
use ihip_model::{Pruning, presets::Paper3k, pruning};

pruning! {
    pub Mine: Paper3k { layers 2..=4 { attend { keep 512 } } }
}

fn main() {
    let layer = |layer| Mine::pipeline().layer(layer).prefill.pruned().unwrap();
    assert_eq!([1, 2, 4, 5].map(|number| layer(number).keep), [4_096, 512, 512, 2_048]);
    assert_eq!(layer(2).rope.scan, ScanRope::ChunkIndexed);
    assert_eq!(layer(3).rope.scan, ScanRope::Relative);
}
