use ihip_model::{Pruning, pruning};

pruning! {}

pruning! {
    pub One { sink 64; window 512; rope { attend streaming } }
    pub Two { sink 64; window 256; rope { attend streaming } }
}

fn main() {
    assert_eq!((One::pipeline().name(), Two::pipeline().name()), ("One", "Two"));
}
