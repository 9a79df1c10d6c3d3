use ihip_model::{Pruning, pruning};

fn window() -> u32 {
    pruning! {
        Local { sink 64; window 512; rope { attend streaming } }
    }
    Local::pipeline().base().prefill.pruned().unwrap().window
}

fn main() {
    assert_eq!(window(), 512);
}
