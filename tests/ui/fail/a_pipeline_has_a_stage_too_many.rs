use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage {            chunk 256 }
        stage { keep 2_560, chunk 128 }
        stage { keep 2_560, chunk 64 }
        stage { keep 2_560, chunk 32 }
        stage { keep 2_560, chunk 16 }
        stage { keep 2_560, chunk 8 }
        stage { keep 2_560, chunk 4 }
        stage { keep 2_560, chunk 2 }
        stage { keep 2_560, chunk 1 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
