#![allow(dead_code)]

use ihip_model::{Pruning as _, pruning};

mod core {}
mod std {}
struct Option;
struct Cow;

pruning! {
    pub Stage { sink 64; window 512; stage { chunk 32 } attend { keep 64 } rope { scan none, attend none } }
    pub Pipeline { sink 64; window 512; rope { attend none } }
    pub Pruning { sink 64; window 512; rope { attend none } }
    pub PIPELINE { sink 64; window 512; rope { attend none } }
}

fn main() {
    assert_eq!(Stage::pipeline().name(), "Stage");
    assert_eq!(Pipeline::pipeline().name(), "Pipeline");
    assert_eq!(Pruning::pipeline().name(), "Pruning");
    assert_eq!(PIPELINE::pipeline().name(), "PIPELINE");
}
