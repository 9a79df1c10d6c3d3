use ihip_model::pruning;

pruning! {
    pub Mine sink 256;
}

fn main() {}
