use ihip_model::pruning;

pruning! {
    pub Mine: {
        window 512;
    }
}

fn main() {}
