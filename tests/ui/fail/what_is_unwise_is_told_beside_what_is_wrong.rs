use ihip_model::pruning;

const SINK: u32 = 250;

pruning! {
    pub Unwise {
        sink 256; window 1_024;
        stage { chunk 32, refresh 96 }
        stage { keep 4_096, chunk 16 }
        attend { keep 8_192 }
        rope { scan relative, attend streaming }
        decode { stage { chunk 32, refresh 48 } }
    }

    #[allow(deprecated, reason = "pages of the method that it stands for")]
    pub Known {
        sink 256; window 1_024;
        stage { chunk 16, representative min_max }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
    }

    pub Wrong: Unwise {
        sink SINK;
    }
}

fn main() {}
