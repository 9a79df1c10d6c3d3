//! Numbers of one request.

use ihip_dsl::{LayerPlan, Plan};
use ihip_runtime::jit::Compilations;
use serde::Serialize;

/// What a request took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// The device, as it names itself.
    pub device: String,
    /// Name of the pipeline, or `dense`.
    pub pruning: String,
    /// Tokens.
    pub tokens: Tokens,
    /// Wall-clock seconds of each phase.
    pub seconds: Seconds,
    /// Kernels that the request needed; `None` where it runs without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Kernels>,
    /// Keys that a query head attends to in one decoding step, the mean over steps and layers; 0 where nothing was
    /// decoded.
    pub keys_attended_per_step: f64,
    /// Largest resident set of the process so far, in bytes.
    pub peak_bytes: u64,
    /// Memory of the device that weights, cache and activations take at the end, in bytes: nothing is given back
    /// before. `None` where it is that of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// Keys and values that lie with the host besides, in bytes: those beyond the device's share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_kv_bytes: Option<u64>,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Of the prompt.
    pub prompt: usize,
    /// Written, the end token not counted.
    pub generated: usize,
}

/// Kernels of a request, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kernels {
    /// Those that were compiled.
    pub compiled: usize,
    /// Those that were compiled by an earlier run and kept.
    pub loaded: usize,
}

impl Kernels {
    /// What a device has counted; `None` where it counted none.
    #[must_use]
    pub fn counted(kernels: Compilations) -> Option<Self> {
        let Compilations { compiled, loaded } = kernels;
        (compiled + loaded > 0).then_some(Self { compiled, loaded })
    }
}

/// Seconds of the phases of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Compiling kernels, or finding those that were compiled before; 0 where there are none.
    pub compile: f64,
    /// Reading and dequantising the weights, and allocating the cache.
    pub load: f64,
    /// From the first prompt token to the first logits.
    pub prefill: f64,
    /// Every later token.
    pub decode: f64,
}

/// Keys that a query head at `position` attends to while decoding, the mean over layers.
#[must_use]
pub fn keys_attended(plan: &Plan, position: usize) -> f64 {
    let visible = position + 1;
    let keys = |layer| match plan.decode(layer) {
        LayerPlan::Dense => visible,
        LayerPlan::Pruned(layer) => visible.min(layer.budget()),
    };
    let sum: usize = (0..plan.layers()).map(keys).sum();
    sum as f64 / plan.layers() as f64
}

/// Largest resident set of this process so far, in bytes.
#[must_use]
pub fn peak_resident_bytes() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    // Kibibytes everywhere but on Apple's systems.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss() as u64 * unit)
}
