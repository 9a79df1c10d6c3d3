use ihip_dsl::Refresh;
use ihip_model::{Pruning, presets::Paper3k, pruning};

pruning! {
    pub InTurn: Paper3k { refresh staggered; }
    pub AtOnce: InTurn { refresh together; }
}

fn main() {
    assert_eq!(InTurn::pipeline().refresh(), Refresh::Staggered);
    assert_eq!(AtOnce::pipeline().refresh(), Refresh::Together);
}
