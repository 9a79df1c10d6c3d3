use ihip_model::{Pruning, pruning};

pruning! {
    pub Three {
        query_block 64; sink 256; window 1_024;

        stage {              chunk 256, query_stride 4, refresh 32 }
        stage { keep 32_768, chunk  32, query_stride 4, refresh 16 }
        stage { keep  8_192, chunk   8, query_stride 1, refresh  8 }
        attend { keep 2_048 }

        rope { scan relative, attend streaming }
    }
}

fn main() {
    let base = Three::pipeline().base().prefill.pruned().unwrap();
    assert_eq!((base.sink, base.window, base.keep), (256, 1_024, 2_048));
    let stages: Vec<_> = base.stages.iter().map(|stage| (stage.keep, stage.chunk, stage.refresh)).collect();
    assert_eq!(stages, [(None, 256, 32), (Some(32_768), 32, 16), (Some(8_192), 8, 8)]);
}
