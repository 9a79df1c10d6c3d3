use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;

        stage { chunk 64, query_stride 4, refresh 8 }
        stage { keep 4_096, chunk 16, query_block 128 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
