use ihip_model::presets::Paper3k;
use ihip_model::pruning;

const CHUNK: usize = 24;

pruning! {
    pub Mine: Paper3k {
        stage { chunk 256, query_stride 4, refresh 16 }
        stage { keep 32_768, chunk CHUNK, refresh 8 }
    }
}

fn main() {}
