use ihip_model::pruning;

const EARLY: u32 = 2;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        rope { attend streaming }
        layers 0..=EARLY { window 2_048; }
        layers EARLY { window 4_096; }
    }
}

fn main() {}
