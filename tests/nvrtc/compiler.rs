//! Cubins and their resources; rejected texts.

use ihip_runtime::jit::{Architecture, JitError, Saved};
use ihip_tests::support::nvrtc::nvrtc;

/// 308 bytes of shared memory, an array indexed at run time that cannot live in registers.
const SUM: &str = r#"extern "C" __global__ void __launch_bounds__(128) sum(float* a, int n) {
    __shared__ float tile[77];
    tile[threadIdx.x % 77] = a[threadIdx.x];
    __syncthreads();
    float row[64];
    for (int i = 0; i < 64; i++) row[i] = a[i * n] * tile[i];
    float total = 0;
    for (int i = 0; i < 64; i++) total += row[(i * n) & 63];
    a[n] = total;
}
"#;

#[test]
fn cubins_for_every_tested_architecture_report_their_resources() {
    for architecture in Architecture::TESTED {
        let cubin = nvrtc().compile("sum", SUM, architecture).unwrap();
        assert!(cubin.image.starts_with(b"\x7fELF"), "{architecture}: not an ELF file");
        let resources = cubin.resources;
        assert!((8..=255).contains(&resources.registers), "{architecture}: {resources:?}");
        assert_eq!(resources.stack_bytes, 256, "{architecture}");
        assert_eq!(resources.shared_bytes, 308, "{architecture}");
    }
}

#[test]
fn spills_are_reported() {
    // 128 live values for 1024 threads, which have 64 registers each.
    let text = r#"extern "C" __global__ void __launch_bounds__(1024) hoard(const float* a, float* out) {
    float kept[128];
    #pragma unroll
    for (int i = 0; i < 128; i++) kept[i] = a[i * 1024 + threadIdx.x];
    __syncthreads();
    float total = 1;
    #pragma unroll
    for (int i = 127; i >= 0; i--) total = total * kept[i] + kept[(i * 37) % 128];
    out[threadIdx.x] = total;
}
"#;
    let resources = nvrtc().compile("hoard", text, Architecture::SM_90).unwrap().resources;
    assert!(resources.spill_store_bytes > 0 && resources.spill_load_bytes > 0, "{resources:?}");
}

#[test]
fn the_same_text_gives_the_same_cubin() {
    let compile = || nvrtc().compile("sum", SUM, Architecture::SM_90).unwrap();
    assert_eq!(compile(), compile());
}

#[test]
fn a_rejected_text_is_shown_with_three_lines_around_the_error() {
    let text = "// one\n// two\n#line 7 \"Paper3k\"\nextern \"C\" __global__ void bad(float* a) {\n    float b = 1;\n    a[0] = c;\n    a[1] = b;\n}\n// nine\n// ten\n";
    let error = nvrtc().compile("bad", text, Architecture::SM_90).unwrap_err();
    let JitError::Rejected { diagnostics, saved: Saved::At(path), .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(diagnostics.errors.len(), 1);
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    let folder = path.parent().unwrap().display().to_string();
    insta::assert_snapshot!(error.to_string().replace(&folder, "<cache>/rejected"), @r#"
    bad does not compile for sm_90
    line 6 (Paper3k:9): identifier "c" is undefined
         3 | #line 7 "Paper3k"
         4 | extern "C" __global__ void bad(float* a) {
         5 |     float b = 1;
    >    6 |     a[0] = c;
         7 |     a[1] = b;
         8 | }
         9 | // nine
    options: --gpu-architecture=sm_90 --std=c++17 --device-as-default-execution-space --fmad=true --generate-line-info --ptxas-options=--verbose
    whole text: <cache>/rejected/bad.sm_90.cu
    "#);
}

#[test]
fn errors_beyond_the_first_few_are_counted() {
    let mut text = "extern \"C\" __global__ void many(float* a) {\n".to_owned();
    for index in 0..9 {
        text.push_str(&format!("    a[{index}] = missing{index};\n"));
    }
    text.push_str("}\n");
    let message = nvrtc().compile("many", &text, Architecture::SM_90).unwrap_err().to_string();
    assert!(message.contains("missing3") && message.contains("\nand 5 more errors\n"), "{message}");
    assert!(!message.contains("identifier \"missing4\""), "{message}");
}

#[test]
fn an_architecture_beyond_the_library_is_refused_with_those_it_knows() {
    let error = nvrtc().compile("sum", SUM, Architecture::new(99, 9)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, JitError::UnsupportedArchitecture { .. }), "{message}");
    assert!(message.contains("does not compile for sm_999") && message.contains("sm_90"), "{message}");
}

#[test]
fn a_text_without_the_entry_is_an_error_that_names_it() {
    let error = nvrtc().compile("product", SUM, Architecture::SM_90).unwrap_err();
    assert!(matches!(error, JitError::NoResources { .. }), "{error}");
    assert!(error.to_string().contains("reports no registers for product on sm_90"), "{error}");
}

#[test]
fn a_nul_byte_in_the_text_is_refused() {
    let error = nvrtc().compile("sum", "int a;\0int b;", Architecture::SM_90).unwrap_err();
    assert_eq!(error.to_string(), "the text of sum has a NUL byte at offset 6");
}

#[test]
fn architectures_are_read_and_written_alike() {
    for word in ["sm_80", "sm_90", "sm_120"] {
        assert_eq!(word.parse::<Architecture>().unwrap().to_string(), word);
    }
    let error = "90".parse::<Architecture>().unwrap_err();
    assert_eq!(error.to_string(), "90 is no architecture: write sm_ and a compute capability, such as sm_90 or sm_90a");
}
