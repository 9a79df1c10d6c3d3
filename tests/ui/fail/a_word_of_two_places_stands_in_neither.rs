use ihip_model::pruning;

pruning! {
    pub Half: ihip_model::presets::Paper3k {
        keep 1_024;
        rope { query_block 64 }
    }
}

fn main() {}
