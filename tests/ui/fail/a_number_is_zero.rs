use ihip_model::pruning;

pruning! {
    pub Mine {
        query_block 0; sink 256; window 0;

        stage { chunk 0, query_stride 0, refresh 0 }
        attend { keep 0 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
