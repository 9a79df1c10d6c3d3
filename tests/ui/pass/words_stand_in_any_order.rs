use ihip_model::{Pruning, pruning};

pruning! {
    pub Upright {
        query_block 32; sink 64; window 512;
        stage { chunk 32, query_stride 2, refresh 4, }
        stage { keep 4_096, chunk 8 }
        attend { keep 1_024 }
        rope { scan infllm, attend infllm }
    }

    pub Upside {
        rope { attend infllm, scan infllm, }
        attend { keep 1_024, }
        stage { refresh 4, query_stride 2, chunk 32 }
        stage { chunk 8, keep 4_096 }
        window 512; sink 64; query_block 32;
    }
}

fn main() {
    assert_eq!(Upright::pipeline().base(), Upside::pipeline().base());
}
