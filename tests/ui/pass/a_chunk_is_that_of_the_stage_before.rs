use ihip_model::{Pruning, pruning};

pruning! {
    pub Twice {
        sink 64; window 512;
        stage { chunk 16, query_stride 8 }
        stage { keep 4_096, chunk 16 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {
    assert_eq!(Twice::pipeline().base().prefill.pruned().unwrap().stages.len(), 2);
}
