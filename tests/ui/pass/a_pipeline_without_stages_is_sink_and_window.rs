use ihip_model::{Pruning, pruning};

pruning! {
    pub Streaming {
        sink 4; window 1_020;
        rope { attend streaming }
    }
}

fn main() {
    let base = Streaming::pipeline().base().prefill.pruned().unwrap();
    assert!(base.stages.is_empty());
    assert_eq!((base.sink, base.window, base.query_block, base.keep), (4, 1_020, 64, 0));
}
