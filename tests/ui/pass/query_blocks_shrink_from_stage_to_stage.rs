use ihip_model::{Pruning, pruning};

pruning! {
    pub Shrinking {
        query_block 16; sink 64; window 512;
        stage { chunk 64, query_block 128, query_stride 8 }
        stage { keep 4_096, chunk 16, query_block 32 }
        stage { keep 2_048, chunk 16 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {
    let base = Shrinking::pipeline().base().prefill.pruned().unwrap();
    let blocks: Vec<_> = base.stages.iter().map(|stage| stage.query_block).collect();
    assert_eq!(blocks, [128, 32, 16]);
    assert_eq!(base.query_block, 16);
}
