use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage { chunk 64, representative mean }
        attend { keep 2_048 }
        rope { scan self_extend, attend streaming }
    }
}

fn main() {}
