use ihip_model::pruning;

pruning! {
    pub Parent {
        sink 256;
        rope { attend streaming }
    }

    pub Mine: Parent {
        sink 4;
    }
}

fn main() {}
