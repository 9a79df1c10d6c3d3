use ihip_model::pruning;

const WINDOW: f32 = 1_024.5;

pruning! {
    pub Mine {
        sink 256; window WINDOW;
        rope { attend streaming }
    }
}

fn main() {}
