use ihip_model::pruning;

pruning! {
    pub Mine: Paper3k {
        window 512;
    }
}

fn main() {}
