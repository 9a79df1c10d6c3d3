use ihip_model::pruning;

pruning! {
    pub Parent {
        sink 32; window 1_024;
        rope { attend streaming }
        layers 0..=2 { stage { chunk 32 } attend { keep 64 } rope { scan relative } }
    }

    pub Mine: Parent {
        sink 4;
    }
}

fn main() {}
