use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 240; window 1_024;

        stage { chunk 64, query_stride 4, refresh 8 }
        stage { keep 4_096, chunk 24 }
        attend { keep 1_032 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
