use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window fn;
        rope { attend streaming }
    }
}

fn main() {}
