use ihip_model::pruning;

pruning! {
    pub Parent {
        sink 64; window 1_024;
        rope { attend streaming }
        layers 0..=2 { stage { chunk 64 } attend { keep 128 } rope { scan relative } }
    }

    pub Mine: Parent {
        sink 4;
    }
}

fn main() {}
