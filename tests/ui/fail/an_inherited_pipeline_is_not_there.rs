use ihip_model::pruning;

pruning! {
    pub Mine: Paper4k {
        window 512;
    }
}

fn main() {}
