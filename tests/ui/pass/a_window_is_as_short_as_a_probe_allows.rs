use ihip_model::{Pruning, pruning};

pruning! {
    pub Tight {
        sink 0; window 127;
        stage { chunk 64 }
        attend { keep 64 }
        rope { scan relative, attend streaming }
    }
}

fn main() {
    let base = Tight::pipeline().base().prefill.pruned().unwrap();
    assert_eq!((base.sink, base.window), (0, 127));
}
