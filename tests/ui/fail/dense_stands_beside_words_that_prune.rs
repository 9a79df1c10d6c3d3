use ihip_model::pruning;

pruning! {
    pub Mine {
        dense;
        sink 256; window 1_024;
        rope { attend streaming }
    }
}

fn main() {}
