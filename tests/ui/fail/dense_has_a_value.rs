use ihip_model::pruning;

pruning! {
    pub Mine {
        dense true;
    }
}

fn main() {}
