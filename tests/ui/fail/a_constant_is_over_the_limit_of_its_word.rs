use ihip_model::pruning;

const KEEP: usize = 20_000_000;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage { chunk 64 }
        attend { keep KEEP }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
