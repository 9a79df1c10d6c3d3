use ihip_model::pruning;

pruning! {
    pub Größe {
        sink 256; window 1_024;
        rope { attend streaming }
    }
}

fn main() {}
