//! Heads of 96 and of 256 elements, in the sizes of models that have them: kernels compile for every tested architecture
//! within what every chip has.

use ihip_dsl::emit::{Activation, Family, Program};
use ihip_dsl::{KvType, Plan, Pruning as _};
use ihip_model::presets::{Paper3k, Quest};
use ihip_model::shapes::KnownShape;
use ihip_runtime::jit::Architecture;
use ihip_tests::support::nvrtc::nvrtc;

/// Bytes of registers that the compiler may spill where it aims at one block of threads more to a multiprocessor.
const FOUR_REGISTERS: u32 = 16;
/// Bytes of the array in which cosine and sine reduce large angles; no other array is out of registers.
const REDUCTION: u32 = 32;

#[test]
fn kernels_of_heads_of_96_and_256_compile_within_what_every_chip_has() {
    for (model, kv_type) in [("phi-3-mini", KvType::Bf16), ("gemma-2-2b", KvType::Bf16), ("gemma-2-2b", KvType::F32)] {
        let shape = KnownShape::named(model).expect("a known shape");
        for pipeline in [Paper3k::pipeline(), Quest::pipeline()] {
            let plan =
                Plan::new(pipeline, shape.geometry(kv_type), shape.frequencies(), shape.layers).expect("it fits");
            let kernels = Program::new(&plan, Activation::Bf16).expect("a multiple of 32").kernels();
            for kernel in kernels.iter().filter(|kernel| kernel.family != Family::Select) {
                for architecture in Architecture::TESTED {
                    let compiled = nvrtc().compile(&kernel.name, &kernel.text, architecture);
                    let resources = compiled.unwrap_or_else(|error| panic!("{error}")).resources;
                    let name = format!("{} of {model} on {architecture}: {resources:?}", kernel.name);
                    assert!(resources.spill_store_bytes <= FOUR_REGISTERS, "{name}");
                    assert!(resources.stack_bytes <= REDUCTION, "{name}");
                    assert!(resources.registers * kernel.threads <= 65_536, "{name}");
                    let shared = resources.shared_bytes + kernel.shared_bytes;
                    assert!(shared <= 99 * 1024, "{name}: {shared} bytes of shared memory");
                }
            }
        }
    }
}
