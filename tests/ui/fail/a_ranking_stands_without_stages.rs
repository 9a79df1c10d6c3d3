use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        ranking kv_group;
        rope { attend streaming }
    }
}

fn main() {}
