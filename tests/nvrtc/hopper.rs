//! Texts with what sm_90a alone has: one of each kind is kept as a snapshot, and all compile for it.

use ihip_dsl::emit::{Activation, Instructions, Kernel, Program};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{Geometry, KvType, Plan};
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;

use super::scoring::own_text;

const PIPELINES: &str = "
pub Listed {
    query_block 64; sink 256; window 1024;
    stage { chunk 256, query_stride 4 }
    stage { keep 8_192, chunk 8 }
    attend { keep 2_048 }
    rope { scan relative, attend streaming }
}
pub Rotated {
    query_block 32; sink 256; window 1024;
    stage { chunk 64, query_stride 4 }
    attend { keep 2_048 }
    rope { scan none, attend none }
}
pub Sinks { sink 256; window 1024; rope { attend infllm } }
";

/// Kernels for heads of `head_dim` elements whose text is for Hopper alone.
fn kernels(head_dim: u32, kv_type: KvType) -> Vec<Kernel> {
    let pipelines = ihip_dsl::parse_str(PIPELINES).unwrap_or_else(|errors| panic!("{errors}"));
    let query_scale = 1.0 / (head_dim as f32).sqrt();
    let geometry = Geometry { query_heads: 32, kv_heads: 8, head_dim, kv_type, page: 16, query_scale, trained: 8192 };
    let frequencies = || vec![1.0; head_dim as usize / 2];
    let plans = pipelines.iter().map(|pipeline| Plan::new(pipeline, geometry, frequencies(), 1).expect("one layer"));
    let plans = plans.chain([Plan::dense(geometry, frequencies(), 1)]);
    let hopper = |plan: Plan| Program::with(&plan, Activation::F32, Instructions::Hopper, Tunings::default());
    let programs = plans.map(|plan| hopper(plan).expect("a usual head"));
    let kernels = programs.flat_map(|program| program.kernels());
    kernels.filter(|kernel| kernel.name.ends_with("_sm_90a")).collect()
}

#[test]
fn texts_for_hopper_compile_for_it_and_keep_what_they_multiply_in_registers() {
    let architecture = Architecture::of_gpu(9, 0);
    assert_eq!(architecture.instructions(), Instructions::Hopper);
    for (head_dim, kv_type) in [(128, KvType::Bf16), (128, KvType::F16), (64, KvType::Bf16)] {
        let kernels = kernels(head_dim, kv_type);
        assert_eq!(kernels.len(), 4, "one for each way to find keys");
        for kernel in kernels {
            let compiled = nvrtc().compile(&kernel.name, &kernel.text, architecture);
            let resources = compiled.unwrap_or_else(|error| panic!("{error}")).resources;
            // Products wait for each other where registers do not hold them: an address or two may lie elsewhere.
            assert!(resources.stack_bytes <= 16, "{}: {resources:?}", kernel.name);
            assert!(resources.registers * kernel.threads <= 65_536, "{}: {resources:?}", kernel.name);
            let shared = resources.shared_bytes + kernel.shared_bytes;
            assert!(shared <= 227 * 1024, "{}: {shared} bytes of shared memory", kernel.name);
        }
    }
}

#[test]
fn portable_programs_have_no_text_for_hopper() {
    let pipelines = ihip_dsl::parse_str(PIPELINES).unwrap_or_else(|errors| panic!("{errors}"));
    let (head_dim, kv_type, query_scale) = (128, KvType::Bf16, 1.0);
    let geometry = Geometry { query_heads: 32, kv_heads: 8, head_dim, kv_type, page: 16, query_scale, trained: 8192 };
    for pipeline in &pipelines {
        let plan = Plan::new(pipeline, geometry, vec![1.0; 64], 1).expect("one layer");
        for kernel in Program::new(&plan, Activation::F32).expect("a usual head").kernels() {
            assert!(!kernel.text.contains("wgmma"), "{}", kernel.name);
        }
    }
}

#[test]
fn texts_for_hopper() {
    for kernel in kernels(128, KvType::Bf16) {
        insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(kernel.name.clone(), own_text(&kernel));
        });
    }
}
