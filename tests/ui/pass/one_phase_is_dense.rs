use ihip_dsl::Attention;
use ihip_model::{Pruning, pruning};

pruning! {
    pub Mine {
        sink 16; window 240;
        stage { chunk 16, representative min_max }
        attend { keep 1_024 }
        rope { scan none, attend none }
        prefill { dense; }
        layers 0..=1 { dense; }
    }
}

fn main() {
    let mine = Mine::pipeline();
    assert_eq!(mine.base().prefill, Attention::Dense);
    assert_eq!(mine.base().decode.pruned().unwrap().keep, 1_024);
    assert_eq!(mine.layer(1).decode, Attention::Dense);
}
