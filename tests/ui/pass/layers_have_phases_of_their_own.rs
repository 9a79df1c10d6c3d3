use ihip_model::{Pruning, pruning};

pruning! {
    pub Mine {
        sink 4; window 64;
        rope { attend streaming }
        decode { window 128; }
        layers 2 { prefill { window 256; } decode { window 512; sink 8; } }
    }
}

fn main() {
    let window = |layer| {
        let phases = Mine::pipeline().layer(layer);
        (phases.prefill.pruned().unwrap().window, phases.decode.pruned().unwrap().window)
    };
    assert_eq!([window(0), window(2)], [(64, 128), (256, 512)]);
}
