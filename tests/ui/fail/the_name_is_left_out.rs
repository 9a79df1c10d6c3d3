use ihip_model::pruning;

pruning! {
    pub {
        sink 256; window 1_024;
        rope { scan relative, attend streaming }
    }
}

fn main() {}
