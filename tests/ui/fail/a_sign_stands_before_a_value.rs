use ihip_model::pruning;

pruning! {
    pub Mine {
        sink = 256; window: 1_024;

        stage = { chunk = 64 }
        attend { keep = 1_024 }
        rope { scan: relative, attend: streaming }
    }
}

fn main() {}
