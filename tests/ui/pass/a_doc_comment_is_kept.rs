use ihip_model::{Pruning, pruning};

pruning! {
    /// Sink and window.
    ///
    /// * and nothing else
    pub Documented {
        sink 64; window 512;
        rope { attend streaming }
    }
}

fn main() {
    assert_eq!(Documented::pipeline().doc(), "Sink and window.\n\n* and nothing else");
}
