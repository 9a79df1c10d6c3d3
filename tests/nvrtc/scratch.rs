use ihip_dsl::emit::{Activation, Program};
use ihip_dsl::*;
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;
use std::borrow::Cow;

pub fn paper3k() -> Pipeline {
    let stages = vec![
        Stage { keep: None, chunk: 256, query_block: 64, query_stride: 4, refresh: 32 },
        Stage { keep: Some(32768), chunk: 32, query_block: 64, query_stride: 4, refresh: 16 },
        Stage { keep: Some(8192), chunk: 8, query_block: 64, query_stride: 1, refresh: 8 },
    ];
    let layer = |keep, scan| LayerPruning {
        sink: 256,
        window: 1024,
        query_block: 64,
        stages: Cow::Owned(stages.clone()),
        keep,
        rope: Rope { scan, attend: AttendRope::Streaming },
    };
    Pipeline::from_checked(
        "Paper3k".into(),
        "".into(),
        layer(2048, ScanRope::Relative),
        vec![LayerRange { first: 0, last: 2, pruning: layer(4096, ScanRope::ChunkIndexed) }].into(),
    )
}

#[test]
fn scratch() {
    let t = std::time::Instant::now();
    for (h, kv, d, layers) in [(9, 3, 64, 30), (32, 8, 128, 32)] {
        for kv_type in [KvType::Bf16, KvType::F32] {
            let geometry =
                Geometry { query_heads: h, kv_heads: kv, head_dim: d, kv_type, page: 16, query_scale: 0.125 };
            let f = vec![1.0; d as usize / 2];
            for plan in [Plan::new(&paper3k(), geometry, f.clone(), layers).unwrap(), Plan::dense(geometry, f, layers)]
            {
                for act in [Activation::F32, Activation::Bf16] {
                    for k in Program::new(&plan, act).unwrap().kernels() {
                        let t = std::time::Instant::now();
                        match nvrtc().compile(&k.name, &k.text, Architecture::SM_90) {
                            Ok(c) => println!(
                                "{:60} {:?} thr {} dyn {} {:?}",
                                k.name,
                                c.resources,
                                k.threads,
                                k.shared_bytes,
                                t.elapsed()
                            ),
                            Err(e) => println!("{} {}", k.name, e),
                        }
                    }
                }
            }
        }
    }
    println!("{:?}", t.elapsed());
}
