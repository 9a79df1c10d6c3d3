use ihip_model::pruning;

struct Other;

pruning! {
    pub Mine: Other {
        window 512;
    }
}

fn main() {}
