use ihip_model::pruning;

pruning! {
    pub Mine: Mine {
        window 512;
    }
}

fn main() {}
