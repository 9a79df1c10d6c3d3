use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; sink 128; window 1_024;

        stage { chunk 64, refresh 8, chunk 32 }
        attend { keep 1_024 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
