use ihip_dsl::Attention;
use ihip_model::{Pruning, pruning};

pruning! {
    pub Every { dense; }
}

fn main() {
    assert_eq!(Every::pipeline().base().prefill, Attention::Dense);
    assert_eq!(Every::pipeline().base().decode, Attention::Dense);
}
