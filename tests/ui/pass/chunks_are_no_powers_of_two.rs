use ihip_model::{Pruning, pruning};

pruning! {
    pub Dozens {
        sink 96; window 512;
        stage { chunk 144 }
        stage { keep 14_400, chunk 36 }
        stage { keep 3_600, chunk 12 }
        attend { keep 1_200 }
        rope { scan chunk_indexed, attend streaming }
    }
}

fn main() {
    let chunks: Vec<_> = Dozens::pipeline().base().prefill.pruned().unwrap().stages.iter().map(|stage| stage.chunk).collect();
    assert_eq!(chunks, [144, 36, 12]);
}
