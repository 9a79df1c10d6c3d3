use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;

        stage { keep 32_768, chunk 64 }
        stage { keep 4_096, chunk 16, refresh 4 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
