//! What runs on a GPU as well: in the emulator or on the CPU device, and on a GPU where `IHIP_TEST_DEVICE=cuda` asks
//! for it. A GPU that is asked for and not there is a failure.

use ihip_dsl::emit::Activation;
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_tests::support::tolerance::product;

mod device;
mod faults;
mod load;
mod lockstep;
mod model;
mod seeded;
mod tiers;
mod ties;
mod words;

/// Something to be checked on a device.
trait Check {
    /// `rounding` is how far a product of some hundred terms of size 1 may be off.
    fn on<D: Device>(&self, device: &mut D, rounding: f64);
}

/// Checks on the device that `IHIP_TEST_DEVICE` names, in each of its precisions: the CPU where it names the emulator
/// or nothing.
fn check(check: &impl Check) {
    match std::env::var("IHIP_TEST_DEVICE").as_deref() {
        Ok("cuda") => {
            for (precision, activation) in [(Precision::F32, Activation::F32), (Precision::Bf16, Activation::Bf16)] {
                let device = CudaDevice::new(0, precision);
                let mut device = device.unwrap_or_else(|error| panic!("IHIP_TEST_DEVICE is cuda, but {error}"));
                check.on(&mut device, product(activation));
            }
        }
        _ => check.on(&mut CpuDevice::new(2).unwrap(), product(Activation::F32)),
    }
}

/// Numbers that look random, multiples of 2⁻⁷ in [−1, 1): bf16 holds them as they are.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 56) as f32 / 128.0) - 1.0
        })
        .collect()
}
