use ihip_model::{Pruning, pruning};

const KEEP: usize = 128;

pruning! {
    /// The child's child.
    pub Third: Second { window 300; }
    pub Second: First { stage { chunk 8 } attend { keep KEEP } rope { scan none } }
    /// The parent.
    pub First { sink 16; window 200; rope { attend none } }
}

fn main() {
    let third = Third::pipeline().base().decode.pruned().unwrap();
    assert_eq!((third.sink, third.window, third.keep, third.stages.len()), (16, 300, 128, 1));
    assert_eq!((First::pipeline().doc(), Second::pipeline().doc()), ("The parent.", ""));
}
