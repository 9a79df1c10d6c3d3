use ihip_model::{Pruning, pruning};

pruning! {
    pub Replaced {
        query_block 32; sink 64; window 512;
        stage { chunk 64, refresh 8 }
        stage { keep 4_096, chunk 16, refresh 4 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
        layers 0..=2 { stage { chunk 32 } }
    }
}

fn main() {
    let pipeline = Replaced::pipeline();
    assert_eq!(pipeline.base().prefill.pruned().unwrap().stages.len(), 2);
    let [stage] = *pipeline.layer(1).prefill.pruned().unwrap().stages else { panic!("one stage was declared") };
    assert_eq!((stage.chunk, stage.query_block, stage.refresh), (32, 32, 1));
    assert_eq!(pipeline.layer(1).prefill.pruned().unwrap().keep, 1_024);
}
