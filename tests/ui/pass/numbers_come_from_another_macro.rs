use ihip_model::Pruning;

macro_rules! with_window {
    ($name:ident, $window:literal) => {
        ihip_model::pruning! {
            pub $name {
                sink 64; window $window;
                rope { attend streaming }
            }
        }
    };
}

with_window!(Narrow, 256);
with_window!(Wide, 4_096);

fn main() {
    assert_eq!((Narrow::pipeline().base().prefill.pruned().unwrap().window, Wide::pipeline().base().prefill.pruned().unwrap().window), (256, 4_096));
}
