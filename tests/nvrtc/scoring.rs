//! Ways to score and positions that no preset of the gallery has: one kernel of each kind is kept as a snapshot, and all
//! compile for every tested architecture, without spills.

use ihip_dsl::emit::{Activation, Family, Kernel, Program};
use ihip_dsl::{Geometry, KvType, Plan};
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;

/// Every kind of kernel once, in the sizes of a model.
const PIPELINES: &str = "
pub Descents {
    query_block 64; sink 256; window 1024; ranking kv_group;
    stage { chunk 256, query_stride 4, descent kv_group, probe first, chunk_score last }
    stage { keep 8_192, chunk 16, query_stride 4, representative exact, query_reduction mean }
    attend { keep 2_048 }
    rope { scan relative, attend streaming }
}
pub Summaries {
    query_block 64; sink 256; window 1024;
    stage { chunk 64, query_stride 4, representative mean, query_reduction mean }
    stage { keep 8_192, chunk 16, query_stride 1, representative min_max }
    attend { keep 2_048 }
    rope { scan relative, attend streaming }
}
pub Indexed {
    query_block 64; sink 256; window 1024;
    stage { chunk 128, query_stride 8 }
    stage { keep 8_192, chunk 16, query_stride 2, representative mean }
    attend { keep 2_048 }
    rope { scan chunk_indexed, attend streaming }
}
pub Distributions {
    query_block 64; sink 256; window 1024; ranking each;
    stage { chunk 256, query_stride 4, descent kv_group, query_reduction mean, scores soft }
    stage { keep 8_192, chunk 16, query_stride 4, representative min_max, scores soft }
    attend { keep 2_048 }
    rope { scan chunk_indexed, attend streaming }
}
pub DynamicallyExtended {
    query_block 64; sink 256; window 1024;
    stage { chunk 256, query_stride 4 }
    stage { keep 32_768, chunk 32, query_stride 4, descent kv_group, query_reduction mean }
    stage { keep 8_192, chunk 8, query_stride 1, representative exact }
    attend { keep 2_048 }
    rope { scan dynamic_extend, attend dynamic_extend }
}
pub SelfExtended {
    query_block 64; sink 256; window 1024; ranking each;
    stage { chunk 256, query_stride 4, scores soft }
    stage { keep 8_192, chunk 16, query_stride 4, representative exact, scores soft, rope dynamic_extend }
    attend { keep 2_048 }
    rope { scan self_extend, attend self_extend }
}
";

fn kernels() -> Vec<Kernel> {
    let pipelines = ihip_dsl::parse_str(PIPELINES).unwrap_or_else(|errors| panic!("{errors}"));
    let geometry = Geometry {
        query_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        kv_type: KvType::Bf16,
        page: 16,
        query_scale: 0.088_388_35,
        trained: 131_072,
    };
    let programs = pipelines.iter().map(|pipeline| {
        let plan = Plan::new(pipeline, geometry, vec![1.0; 64], 1).expect("one layer");
        Program::new(&plan, Activation::F32).expect("a usual head")
    });
    let kernels = programs.flat_map(|program| program.kernels());
    let otherwise = |kernel: &Kernel| match kernel.family {
        Family::Append | Family::Scan => true,
        Family::Attend => kernel.name.contains("_extend_"),
        Family::Select
        | Family::Gather
        | Family::Dense
        | Family::Merge
        | Family::Move
        | Family::Model
        | Family::Measure => false,
    };
    kernels.filter(otherwise).collect()
}

#[test]
fn kernels_that_score_otherwise_compile_without_spills() {
    for kernel in kernels() {
        for architecture in Architecture::TESTED {
            let compiled = nvrtc().compile(&kernel.name, &kernel.text, architecture);
            let resources = compiled.unwrap_or_else(|error| panic!("{error}")).resources;
            assert_eq!(resources.spill_store_bytes, 0, "{} on {architecture}: {resources:?}", kernel.name);
            assert_eq!(resources.stack_bytes, 0, "{} on {architecture}: {resources:?}", kernel.name);
            let registers = resources.registers * kernel.threads;
            assert!(registers <= 65_536, "{} on {architecture}: {resources:?}", kernel.name);
            let shared = resources.shared_bytes + kernel.shared_bytes;
            assert!(shared <= 99 * 1024, "{} on {architecture}: {shared} bytes of shared memory", kernel.name);
        }
    }
}

/// What a kernel says besides the prelude.
pub(super) fn own_text(kernel: &Kernel) -> String {
    let text = &kernel.text;
    let start = text.find("#line 1 \"prelude.cu\"\n").expect("every kernel has the prelude");
    let end = start + 1 + text[start + 1..].find("\n#line 1 ").expect("the kernel follows the prelude");
    format!("{}// (prelude.cu){}", &text[..start], &text[end..])
}

#[test]
fn texts_of_kernels_that_score_otherwise() {
    let kernels = kernels();
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    insta::assert_snapshot!("scoring_kernels", names.join("\n"));
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        for name in [
            "ihip_descents_s0_scan_first_last_group_descent_relative_kv_group_c256_d128_bf16",
            "ihip_descents_s0_scan_decode_first_last_group_descent_relative_kv_group_c256_d128_bf16",
            "ihip_summaries_append_bounds_c16_d128_bf16",
            "ihip_summaries_s1_scan_min_max_relative_c16_k8192_d128_bf16",
            "ihip_indexed_s0_scan_chunk_indexed_c128_d128_bf16",
            "ihip_indexed_s1_scan_mean_chunk_indexed_c16_k8192_d128_bf16",
            "ihip_dynamically_extended_s1_scan_group_descent_mean_rows_dynamic_extend_c32_k32768_d128_bf16",
            "ihip_distributions_s0_normalise_mean_rows_each_c256_h32",
            "ihip_dynamically_extended_s0_scan_decode_dynamic_extend_c256_d128_bf16",
            "ihip_dynamically_extended_attend_decode_dynamic_extend_k2048_d128_bf16",
            "ihip_self_extended_s0_scan_path_soft_self_extend_each_c256_d128_bf16",
        ] {
            let kernel = kernels.iter().find(|kernel| kernel.name == name);
            insta::assert_snapshot!(name, own_text(kernel.unwrap_or_else(|| panic!("no kernel is called {name}"))));
        }
    });
}
