use ihip_model::{Pruning, pruning};

pruning! {
    pub Changed {
        sink 64; window 512;
        stage { chunk 64, query_block 128, query_stride 4 }
        stage { keep 4_096, chunk 16, query_stride 4 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
        layers 0 { query_block 32; }
    }
}

fn main() {
    let blocks: Vec<_> = Changed::pipeline().layer(0).prefill.pruned().unwrap().stages.iter().map(|stage| stage.query_block).collect();
    assert_eq!(blocks, [128, 32]);
}
