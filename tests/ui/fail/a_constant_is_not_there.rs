use ihip_model::pruning;

pruning! {
    pub Mine {
        sink SINK; window 1_024;

        stage { chunk 64, query_stride 4, refresh 8 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
