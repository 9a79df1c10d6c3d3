use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;

        stage { chunk 64, query_stride 4, refresh 8 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
        layers 0, 1 { window 2_048; }
        layers 4-6 { window 2_048; }
    }
}

fn main() {}
