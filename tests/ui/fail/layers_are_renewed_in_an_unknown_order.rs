use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024; refresh stagered;
        rope { attend streaming }
        layers 0 { refresh together; }
    }
}

fn main() {}
