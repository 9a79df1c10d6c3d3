use ihip_model::pruning;

pruning! {
    pub Mine {
        query_block 48; sink 256; window 1_024;
        stage { chunk 64, query_block 96 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
