//! The model's kernels compile for every tested architecture, without spills, and so do those that move pages and those of
//! measurements.

use ihip_dsl::KvType;
use ihip_dsl::emit::measure::MeasureKernel;
use ihip_dsl::emit::model::ModelKernel;
use ihip_dsl::emit::{Activation, Kernel, Paging, Program, Slots};
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;

use crate::families::{layers, quantised_layers};

fn compiles_without_spills(kernel: &Kernel) {
    for architecture in Architecture::TESTED {
        let cubin = nvrtc().compile(&kernel.name, &kernel.text, architecture).unwrap_or_else(|error| panic!("{error}"));
        let resources = cubin.resources;
        assert_eq!(resources.spill_store_bytes, 0, "{} on {architecture}: {resources:?}", kernel.name);
        assert!(resources.registers * kernel.threads <= 65536, "{} on {architecture}: {resources:?}", kernel.name);
    }
}

#[test]
fn every_model_kernel_compiles_without_spills() {
    for weights in [Activation::F32, Activation::Bf16] {
        for kernel in ModelKernel::all(weights) {
            compiles_without_spills(&kernel.emit(weights));
        }
    }
}

#[test]
fn every_kernel_of_a_cache_of_two_tiers_compiles_without_spills() {
    for layer in layers().into_iter().chain(quantised_layers()) {
        let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head");
        let slots = Slots { pages: 3, keys: 2, values: 1 };
        let program = program.keeping_probes(3);
        Paging::new(&program, slots).kernels().iter().for_each(compiles_without_spills);
        let scans = program.kernels().into_iter().filter(|kernel| kernel.text.contains("probe_row("));
        scans.for_each(|kernel| compiles_without_spills(&kernel));
    }
}

#[test]
fn every_kernel_of_measurements_compiles_without_spills() {
    let noise = KvType::ALL.map(MeasureKernel::Noise);
    let kernels = [MeasureKernel::Read, MeasureKernel::Gather].into_iter().chain(noise);
    kernels.for_each(|kernel| compiles_without_spills(&kernel.emit()));
}
