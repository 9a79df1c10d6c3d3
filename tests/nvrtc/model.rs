//! The model's kernels compile for every tested architecture, without spills.

use ihip_dsl::emit::Activation;
use ihip_dsl::emit::model::ModelKernel;
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;

#[test]
fn every_model_kernel_compiles_without_spills() {
    for weights in [Activation::F32, Activation::Bf16] {
        for kernel in ModelKernel::all(weights) {
            let kernel = kernel.emit(weights);
            for architecture in Architecture::TESTED {
                let cubin =
                    nvrtc().compile(&kernel.name, &kernel.text, architecture).unwrap_or_else(|error| panic!("{error}"));
                let resources = cubin.resources;
                assert_eq!(resources.spill_store_bytes, 0, "{} on {architecture}: {resources:?}", kernel.name);
                assert!(
                    resources.registers * kernel.threads <= 65536,
                    "{} on {architecture}: {resources:?}",
                    kernel.name
                );
            }
        }
    }
}
