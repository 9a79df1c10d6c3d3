use ihip_model::pruning;

const WINDOW: i32 = -4;

pruning! {
    pub Mine {
        sink 256; window WINDOW;
        rope { attend streaming }
    }
}

fn main() {}
