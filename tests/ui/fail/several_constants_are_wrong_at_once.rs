use ihip_model::pruning;

const FIRST: u32 = 100;
const SECOND: u32 = 16;
const STRIDE: u8 = 5;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage { chunk FIRST, query_stride STRIDE }
        stage { keep 1_050, chunk SECOND }
        attend { keep 1_000 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
