use ihip_model::pruning;

mod sizes {
    pub const KEEP: u64 = 1_000;
}

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage { chunk 64 }
        attend { keep sizes::KEEP }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
