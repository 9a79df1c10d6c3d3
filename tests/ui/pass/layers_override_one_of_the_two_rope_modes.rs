use ihip_model::{Pruning, pruning};
use ihip_dsl::{AttendRope, Rope, ScanRope};

pruning! {
    pub Mixed {
        sink 64; window 512;
        stage { chunk 32 }
        attend { keep 1_024 }
        rope { scan relative, attend streaming }
        layers 0 { rope { scan chunk_indexed } }
        layers 1 { rope { attend infllm } }
    }
}

fn main() {
    let pipeline = Mixed::pipeline();
    let [first, second] = [0, 1].map(|layer| pipeline.layer(layer).prefill.pruned().unwrap().rope);
    assert_eq!(first, Rope { scan: ScanRope::ChunkIndexed, attend: AttendRope::Streaming });
    assert_eq!(second, Rope { scan: ScanRope::Relative, attend: AttendRope::Infllm });
}
