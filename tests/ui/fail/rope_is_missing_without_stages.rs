use ihip_model::pruning;

pruning! {
    pub Mine { sink 256; window 1_024; }
}

fn main() {}
