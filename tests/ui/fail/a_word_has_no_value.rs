use ihip_model::pruning;

pruning! {
    pub Mine {
        sink; window 1_024;

        stage { chunk 64, query_stride 4, refresh 8 }
        attend { keep 1_024 }
        rope { scan, attend streaming }
    }
}

fn main() {}
