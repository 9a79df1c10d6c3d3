use ihip_model::presets::Paper3k;
use ihip_model::pruning;

pruning! {
    pub Mine: Paper3k {
        window 128;
        attend { keep 1_001 }
    }
}

fn main() {}
