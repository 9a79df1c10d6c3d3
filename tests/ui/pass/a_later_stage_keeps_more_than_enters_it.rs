use ihip_model::{Pruning, pruning};

pruning! {
    pub Generous {
        sink 64; window 512;
        stage { chunk 64 }
        stage { keep 1_024, chunk 32 }
        stage { keep 1_048_576, chunk 8 }
        attend { keep 2_097_152 }
        rope { scan none, attend none }
    }
}

fn main() {
    assert_eq!(Generous::pipeline().base().prefill.pruned().unwrap().keep, 2_097_152);
}
