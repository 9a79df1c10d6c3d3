use ihip_model::{Pruning, pruning};

pruning! {
    /// Nearly every number of it is wrong, and each is said once.
    pub Mine {
        query_block 64; sink 250; window 300;

        stage { keep 65_536, chunk 256, query_stride 3, refresh 0 }
        stage { keep 32_100, chunk 48, query_stride 4 }
        stage { chunk 8 }
        attend { keep 2_047 }

        rope { scan relativ, attend streaming }
        layers 2..=0 { atend { keep 4_096 } }
    }

    /// The other one is right, and stays so.
    pub Yours {
        sink 64; window 512;
        rope { attend streaming }
    }
}

fn main() {
    let _ = (Mine::pipeline(), Yours::pipeline());
}
