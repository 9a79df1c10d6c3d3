use ihip_model::pruning;

const CHUNK: u32 = 48;

pruning! {
    pub Mine {
        sink 256; window 1_024;
        stage { chunk CHUNK }
        attend { keep 480 }
        rope { scan relative, attend streaming }
    }
}

fn main() {}
