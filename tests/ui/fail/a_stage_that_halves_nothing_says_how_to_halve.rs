use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage { chunk 64, representative min_max, probe first, descent kv_group }
        attend { keep 2_048 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
