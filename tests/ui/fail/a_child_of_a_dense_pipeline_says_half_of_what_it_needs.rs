use ihip_model::pruning;

pruning! {
    pub Every { dense; }

    pub Mine: Every {
        window 512;
    }
}

fn main() {}
