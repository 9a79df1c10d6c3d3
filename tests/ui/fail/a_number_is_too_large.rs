use ihip_model::pruning;

pruning! {
    pub Mine {
        query_block 2_048; sink 20_000_000; window 5_000_000_000;

        stage { chunk 131_072, query_stride 4_096, refresh 100_000 }
        attend { keep 99_999_999_999_999_999_999 }
        rope { scan relative, attend streaming }
        layers 70_000 { window 2_048; }
    }
}

fn main() {}
