use ihip_model::{Pruning, pruning};

pruning! {
    pub Unwise {
        sink 256; window 1_024;
        stage { chunk 32, refresh 96 }
        attend { keep 8_192 }
        rope { scan relative, attend streaming }
    }
}

fn main() {
    assert_eq!(Unwise::pipeline().base().decode.pruned().unwrap().stages[0].refresh, 96);
}
