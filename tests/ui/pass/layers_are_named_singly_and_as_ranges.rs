use ihip_model::{Pruning, pruning};

pruning! {
    pub Layered {
        sink 64; window 512;
        stage { chunk 32 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
        layers 4 { window 2_048; }
        layers 0..=2 { attend { keep 4_096 } }
    }
}

fn main() {
    let pipeline = Layered::pipeline();
    let windows: Vec<_> = (0..6).map(|layer| pipeline.layer(layer).prefill.pruned().unwrap().window).collect();
    let keeps: Vec<_> = (0..6).map(|layer| pipeline.layer(layer).prefill.pruned().unwrap().keep).collect();
    assert_eq!(windows, [512, 512, 512, 512, 2_048, 512]);
    assert_eq!(keeps, [4_096, 4_096, 4_096, 1_024, 1_024, 1_024]);
}
