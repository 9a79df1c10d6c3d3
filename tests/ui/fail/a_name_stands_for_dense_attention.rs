use ihip_model::pruning;

pruning! {
    pub Dense {
        sink 256; window 1_024;
        rope { attend streaming }
    }
}

fn main() {}
