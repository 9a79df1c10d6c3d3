use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 256; window 1_024;

        stage { chunk 64, query_stride 4, refresh 8 }
        stage { keep 4_096, chunk 16, refresh 4 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
        layers 0 { window 100; }
        layers 1 { attend { keep 1_000 } }
        layers 2 { rope { attend none } }
        layers 3 {
            stage { chunk 96 }
        }
        layers 4 { query_block 30; }
    }
}

fn main() {}
