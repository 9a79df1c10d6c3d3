use ihip_model::{Pruning, pruning};

const SINK: u8 = 64;
const CHUNK: usize = 1 << 5;

mod sizes {
    pub const KEEP: i64 = 2_048;
    pub const LAYERS: u128 = 2;
}

struct Model;

impl Model {
    const WINDOW: u32 = 2 * CHUNK as u32 + sizes::KEEP as u32;
}

pruning! {
    pub Mine {
        sink SINK; window Model::WINDOW;
        stage { chunk CHUNK, refresh self::sizes::LAYERS }
        attend { keep sizes::KEEP }
        rope { scan relative, attend streaming }
        layers 0..=sizes::LAYERS { attend { keep crate::sizes::KEEP } window 4_096; }
    }
}

fn main() {
    let mine = Mine::pipeline().base().decode.pruned().unwrap();
    assert_eq!((mine.sink, mine.window, mine.keep), (64, 2_112, 2_048));
    assert_eq!((mine.stages[0].chunk, mine.stages[0].refresh), (32, 2));
    assert_eq!(Mine::pipeline().layer(2).decode.pruned().unwrap().window, 4_096);
}
