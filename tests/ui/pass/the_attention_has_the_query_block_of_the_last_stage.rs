use ihip_model::{Pruning, pruning};

pruning! {
    pub Fine {
        query_block 64; sink 64; window 512;
        stage { chunk 64 }
        stage { keep 4_096, chunk 16, query_block 32 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {
    assert_eq!(Fine::pipeline().base().prefill.pruned().unwrap().query_block, 32);
}
