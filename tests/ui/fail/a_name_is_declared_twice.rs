use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        rope { attend streaming }
    }

    pub Mine {
        sink 64; window 512;
        rope { attend infllm }
    }
}

fn main() {}
