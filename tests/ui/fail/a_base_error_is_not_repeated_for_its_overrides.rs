use ihip_model::pruning;

pruning! {
    pub Mine {
        sink 250; window 100;

        stage { chunk 64 }
        stage { chunk 24 }
        rope { scan relative }
        layers 0 { rope { scan infllm } }
        layers 1 { query_block 32; }
    }
}

fn main() {}
