use ihip_model::pruning;

pruning! {
    pub Mine {
        query_block 64; sink 256; window 1_024;

        stage { chunk 64, query_block 32 }
        stage { keep 4_096, chunk 16, refresh 4 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
