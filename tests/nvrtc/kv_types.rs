//! Caches of eight and four bits, in the sizes of a model: what differs from other caches is kept as a snapshot, and all
//! kernels compile for every tested architecture.

use ihip_dsl::emit::{Activation, Family, Kernel, Program};
use ihip_dsl::{Geometry, KvType, Plan};
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;

use super::scoring::own_text;

const PIPELINE: &str = "
pub Small {
    query_block 64; sink 256; window 1024;
    stage { chunk 256, query_stride 4 }
    stage { keep 8_192, chunk 8, query_stride 1, representative min_max }
    attend { keep 2_048 }
    rope { scan relative, attend streaming }
    layers 0..=0 { dense; }
}
";

/// The kernels of a dense layer and of a pruned one.
fn kernels(kv_type: KvType) -> Vec<Kernel> {
    let pipelines = ihip_dsl::parse_str(PIPELINE).unwrap_or_else(|errors| panic!("{errors}"));
    let geometry = Geometry {
        query_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        kv_type,
        page: 16,
        query_scale: 0.088_388_35,
        trained: 131_072,
    };
    let plan = Plan::new(&pipelines[0], geometry, vec![1.0; 64], 2).expect("two layers");
    Program::new(&plan, Activation::Bf16).expect("a usual head").kernels()
}

#[test]
fn kernels_of_small_types_compile_within_what_every_chip_has() {
    for kv_type in [KvType::E4m3, KvType::E5m2, KvType::Int8, KvType::Int4] {
        let kernels = kernels(kv_type).into_iter().filter(|kernel| kernel.family != Family::Select);
        // Beside its constants nothing tells one float of eight bits from the other.
        let few = kv_type == KvType::E5m2;
        for kernel in kernels.filter(|kernel| !few || kernel.family == Family::Append) {
            for architecture in Architecture::TESTED {
                let compiled = nvrtc().compile(&kernel.name, &kernel.text, architecture);
                let resources = compiled.unwrap_or_else(|error| panic!("{error}")).resources;
                let registers = resources.registers * kernel.threads;
                assert!(registers <= 65_536, "{} on {architecture}: {resources:?}", kernel.name);
                let shared = resources.shared_bytes + kernel.shared_bytes;
                assert!(shared <= 99 * 1024, "{} on {architecture}: {shared} bytes of shared memory", kernel.name);
            }
        }
    }
}

#[test]
fn texts_of_kernels_of_small_types() {
    let kernels: Vec<Kernel> = [KvType::E4m3, KvType::Int4].into_iter().flat_map(kernels).collect();
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        for name in [
            "ihip_small_append_d128_e4m3_q_bf16",
            "ihip_small_append_rotated_d128_int4_q_bf16",
            "ihip_small_attend_all_decode_d128_e4m3_q_bf16",
            "ihip_small_attend_decode_streaming_k2048_d128_int4_q_bf16",
            "ihip_small_attend_streaming_k2048_d128_int4_q_bf16",
            "ihip_small_s0_scan_decode_relative_c256_d128_int4_q_bf16",
            "ihip_small_s0_scan_relative_c256_d128_e4m3_q_bf16",
        ] {
            let kernel = kernels.iter().find(|kernel| kernel.name == name);
            let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            insta::assert_snapshot!(name, own_text(kernel.unwrap_or_else(|| panic!("no kernel is called {name}: {names:?}"))));
        }
    });
}
