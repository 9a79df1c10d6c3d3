use ihip_model::pruning;

const KEEP: u32 = 1_000;

pruning! {
    pub Mine {
        sink 250; window 100;
        stage { chunk 64 }
        attend { keep KEEP }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
