use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        rope { attend streaming }
        layers 3..=5 { prefill { dense; } }
    }
}

fn main() {}
