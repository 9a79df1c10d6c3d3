//! Numbers of one request.

use ihip_dsl::{LayerPlan, Plan};
use ihip_runtime::device::HostAllocation;
use ihip_runtime::jit::Compilations;
use ihip_runtime::kv::{self, Placement, Traffic};
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
    /// Milliseconds of a decoding step; `None` where nothing was decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ms: Option<Percentiles>,
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
    /// What allocating those took; `None` where it took nothing that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_kv_seconds: Option<HostSeconds>,
    /// What moved between the tiers; `None` where all keys and values were on the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv: Option<Kv>,
}

/// Wall-clock seconds of allocating the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct HostSeconds {
    /// All of it, what went on beside loading the model among it.
    pub allocation: f64,
    /// Those for which the request waited once the model was loaded.
    pub wait: f64,
}

impl From<HostAllocation> for HostSeconds {
    fn from(HostAllocation { seconds, waited }: HostAllocation) -> Self {
        Self { allocation: seconds, wait: waited }
    }
}

/// Percentiles of the times of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them took no longer.
    pub p50: f64,
    /// 19 of 20 took no longer.
    pub p95: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

impl Percentiles {
    /// Those of `samples`, by the nearest rank; `None` where there are none.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        let rank = |share: f64| samples[((share * samples.len() as f64).ceil() as usize).saturating_sub(1).min(last)];
        Some(Self { p50: rank(0.5), p95: rank(0.95), p99: rank(0.99) })
    }
}

/// Keys and values in two tiers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kv {
    /// Tokens by the tier that their keys are in at the end, the mean over layers.
    pub keys: TierTokens,
    /// The same of their values.
    pub values: TierTokens,
    /// Shares of reads that were on the GPU.
    pub hit_ratio: HitRatio,
    /// Rows that were read in place on the host; on a GPU pages.
    pub misses: u64,
    /// Pages that were brought to the GPU.
    pub promotions: u64,
    /// Pages that were taken from it.
    pub evictions: u64,
    /// Bytes over the bus.
    pub bytes: KvBytes,
}

/// Tokens by tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TierTokens {
    /// On the GPU.
    pub gpu: usize,
    /// On the host.
    pub host: usize,
}

/// Shares of the rows read that were on the GPU; `None` where nothing was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HitRatio {
    /// Keys, of each stage of the scan.
    pub stages: Vec<Option<f64>>,
    /// Keys and values that were attended to.
    pub attend: Option<f64>,
}

/// Bytes by the way they went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KvBytes {
    /// Copied to the GPU while the prompt was read.
    pub streamed: u64,
    /// Copied to the host while the prompt was read.
    pub written: u64,
    /// Pages brought to the GPU.
    pub promoted: u64,
    /// Pages taken from it.
    pub evicted: u64,
    /// Read in place on the host; on a GPU by the attention alone.
    pub missed: u64,
}

impl Kv {
    /// What a device has counted; `None` where no token ever was on the host.
    #[must_use]
    pub fn counted(traffic: &Traffic, residence: Placement) -> Option<Self> {
        let tokens = |tokens: kv::Tokens| TierTokens { gpu: tokens.gpu, host: tokens.host };
        let (keys, values) = (tokens(residence.keys), tokens(residence.values));
        if keys.host + values.host == 0 && traffic.evictions == 0 {
            return None;
        }
        Some(Self {
            keys,
            values,
            hit_ratio: HitRatio {
                stages: traffic.stages.iter().map(|stage| stage.hit_ratio()).collect(),
                attend: traffic.attend.hit_ratio(),
            },
            misses: traffic.reads().misses,
            promotions: traffic.promotions,
            evictions: traffic.evictions,
            bytes: KvBytes {
                streamed: traffic.streamed_bytes,
                written: traffic.written_bytes,
                promoted: traffic.promoted_bytes,
                evicted: traffic.evicted_bytes,
                missed: traffic.missed_bytes,
            },
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_their_rank() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        assert_eq!(Percentiles::of(vec![3.0]), Some(Percentiles { p50: 3.0, p95: 3.0, p99: 3.0 }));
        let samples = (1..=200).rev().map(f64::from).collect();
        assert_eq!(Percentiles::of(samples), Some(Percentiles { p50: 100.0, p95: 190.0, p99: 198.0 }));
    }
}
