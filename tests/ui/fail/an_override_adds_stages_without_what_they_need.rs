use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        rope { attend streaming }
        layers 0..=2 { stage { chunk 64 } }
    }
}

fn main() {}
