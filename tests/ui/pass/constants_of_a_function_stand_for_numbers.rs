use ihip_model::{Pruning, pruning};

fn main() {
    const CLASHES: u32 = 512;
    pruning! {
        pub Mine { sink 4; window CLASHES; rope { attend streaming } }
    }
    assert_eq!(Mine::pipeline().base().decode.pruned().unwrap().window, 512);
}
