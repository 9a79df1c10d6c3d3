//! `--gpu-kv` and `--host-kv`: what keys and values of a request may take, and how many tokens fit where.

use std::fmt;
use std::io::{self, Write};

use ihip_dsl::Plan;
use ihip_runtime::Device;
use ihip_runtime::device::cuda::GRAIN;
use ihip_runtime::device::host_available_bytes;
use ihip_runtime::kv::budget::most;
use ihip_runtime::kv::{Budget, KvError, Placement, Probes, Tokens};

use super::arguments::MOST_TOKENS;
use super::device::Settings;
use super::error::Result;
use super::table::{bytes, grouped};

/// Of memory that is free, one part in so many is left alone where nobody says what may be taken.
const LEFT_ALONE: u64 = 16;

/// Where the tokens of a request have room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiers {
    pub(super) tokens: usize,
    pub(super) placement: Placement,
    held: Held,
    /// Most tokens that it holds.
    most: usize,
    /// Bytes of a token.
    pub(super) token: u64,
}

/// What holds keys and values.
#[derive(Clone, Copy, Debug)]
enum Held {
    /// One memory, so many bytes of which are free for all of the cache; `None` where nothing tells.
    Together(Option<u64>),
    /// Two tiers.
    Apart(Budget),
}

/// Gives the device its budget for a request of `capacity` tokens: what is asked for, else what `model` bytes of weights and
/// activations leave free.
///
/// # Errors
/// Where the tokens do not fit, with the numbers.
pub(super) fn choose<D: Device>(
    device: &mut D,
    plan: &Plan,
    capacity: usize,
    model: u64,
    settings: Settings,
) -> Result<Tiers> {
    device.limit_kv(Budget::UNLIMITED, settings.chunk);
    let all = device.kv_bytes(plan, capacity);
    let token = all / capacity as u64;
    let available = device.available_bytes()?;
    let others = device.cache_bytes(plan, capacity).saturating_sub(all);
    let free = available.map(|free| free.saturating_sub(model + others));
    let asked = settings.kv;
    if !settings.own_memory && asked.gpu_kv.is_none() && asked.host_kv.is_none() {
        let free = available.map(|free| free.saturating_sub(model));
        let fits = |tokens| free.is_none_or(|free| device.cache_bytes(plan, tokens) <= free);
        let (placement, most) = (device.placement(plan, capacity)?, most(MOST_TOKENS, fits));
        return Ok(Tiers { tokens: capacity, placement, held: Held::Together(free), most, token });
    }
    let budget = if settings.own_memory {
        let host = asked.host_kv.unwrap_or_else(|| most_of(host_available_bytes(), all));
        let gpu = asked.gpu_kv.unwrap_or_else(|| {
            let needed = |gpu| {
                device.limit_kv(Budget { gpu, host }, settings.chunk);
                device.cache_bytes(plan, capacity) + model
            };
            giving_way(most_of(free, all), available, (plan.layers() * GRAIN) as u64, needed)
        });
        Budget { gpu, host }
    } else {
        // Both tiers are the same memory: what one does not take is left for the other.
        let left = |taken: Option<u64>| free.map(|free| free.saturating_sub(taken.unwrap_or(0)));
        let gpu = asked.gpu_kv.unwrap_or_else(|| most_of(left(asked.host_kv), all));
        Budget { gpu, host: asked.host_kv.unwrap_or_else(|| most_of(left(Some(gpu)), all)) }
    };
    device.limit_kv(budget, settings.chunk);
    let placement = device.placement(plan, capacity)?;
    let most = match device.placement(plan, MOST_TOKENS) {
        Err(ihip_runtime::Error::Kv(KvError::TooLong { fit, .. })) => fit,
        fits => fits.map(|_| MOST_TOKENS)?,
    };
    Ok(Tiers { tokens: capacity, placement, held: Held::Apart(budget), most, token })
}

/// What is left of `gpu` bytes for keys and values so that all that a request `needed`, given these, is `available`: the more
/// lies with the host, the more of the GPU it takes to read it. Gives way by `step` bytes at least; 0 where nothing is enough.
fn giving_way(mut gpu: u64, available: Option<u64>, step: u64, mut needed: impl FnMut(u64) -> u64) -> u64 {
    while let Some(beyond) = available.and_then(|available| needed(gpu).checked_sub(available))
        && beyond > 0
        && gpu > 0
    {
        gpu = gpu.saturating_sub(beyond.max(step));
    }
    gpu
}

/// What may be taken of `free` bytes where nobody says: all that is needed, else most of them.
pub(super) fn most_of(free: Option<u64>, needed: u64) -> u64 {
    match free {
        Some(free) if free < needed => free - free / LEFT_ALONE,
        Some(free) => free,
        // Nothing tells how much is free.
        None => u64::MAX,
    }
}

impl Tiers {
    /// Says how many tokens fit where, if there is anything to say: some lie with the host.
    pub(super) fn announce(&self) {
        if self.placement.keys.host + self.placement.values.host > 0 {
            let _ = writeln!(io::stderr(), "{self}");
        }
    }
}

impl fmt::Display for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, placement: Placement { keys, values, probes }, held, most, token } = *self;
        let (size, most) = (grouped(token as usize), grouped(most));
        let Budget { gpu, host } = match held {
            Held::Apart(budget) => budget,
            Held::Together(Some(free)) => {
                return write!(f, "{} tokens of {size} bytes; {} hold {most}", grouped(tokens), bytes(free as f64));
            }
            Held::Together(None) => return write!(f, "{} tokens of {size} bytes", grouped(tokens)),
        };
        let split = |part: Tokens| {
            // A slot through which pages move is no room for more tokens.
            let gpu = part.gpu.min(tokens);
            format!("{} on the GPU and {} on the host", grouped(gpu), grouped(tokens - gpu))
        };
        let kept = |Probes { levels, bytes: size }| match levels {
            0 => String::new(),
            levels => format!(", the keys of {levels} halvings on the GPU as well, {}", bytes(size as f64)),
        };
        write!(
            f,
            "{} tokens of {} bytes: keys of {}, values of {}{}; {} and {} hold {}",
            grouped(tokens),
            size,
            split(keys),
            split(values),
            kept(probes),
            bytes(gpu as f64),
            bytes(host as f64),
            most,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_holds_is_read_through_memory_of_the_gpu() {
        const GIB: u64 = 1 << 30;
        // 64 GiB in 32 layers; a step of prefill has copies of one layer's keys, twice, and values.
        let needed = |gpu: u64| gpu + 3 * ((64 * GIB).saturating_sub(gpu) / 64) + GIB;
        let (step, asked) = (GIB / 16, 15 * GIB);
        let gpu = giving_way(asked, Some(16 * GIB), step, needed);
        assert!(needed(gpu) <= 16 * GIB && needed(gpu + 2 * step) > 16 * GIB, "{gpu}");
        assert_eq!(giving_way(asked, Some(32 * GIB), step, needed), asked, "there is room");
        assert_eq!(giving_way(asked, None, step, needed), asked, "nothing tells");
        assert_eq!(giving_way(asked, Some(GIB), step, needed), 0, "nothing is enough");
    }
}
