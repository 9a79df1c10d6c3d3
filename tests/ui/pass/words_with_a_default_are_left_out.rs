use ihip_model::{Pruning, pruning};

pruning! {
    pub Short {
        sink 64; window 512;
        stage { chunk 32 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {
    let base = Short::pipeline().base().prefill.pruned().unwrap();
    let stage = base.stages[0];
    assert_eq!((stage.query_block, stage.query_stride, stage.refresh), (64, 1, 1));
    assert_eq!(base.query_block, 64);
}
