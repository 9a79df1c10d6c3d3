use ihip_model::{Pruning, pruning};

pruning! {
    pub Added {
        sink 64; window 512;
        rope { attend streaming }
        layers 3..=5 {
            stage { chunk 32 }
            attend { keep 1_024 }
            rope { scan relative }
        }
    }
}

fn main() {
    let pipeline = Added::pipeline();
    assert!(pipeline.layer(0).prefill.pruned().unwrap().stages.is_empty());
    assert_eq!(pipeline.layer(4).prefill.pruned().unwrap().keep, 1_024);
}
