//! `--gpu-kv` and `--host-kv`: what keys and values of a request may take, and how many tokens fit where.

use std::fmt;
use std::io::{self, Write};

use ihip_dsl::Plan;
use ihip_runtime::Device;
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
    budget: Budget,
    /// Most tokens that the budget holds.
    most: usize,
    /// Bytes of a token.
    pub(super) token: u64,
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
    let others = device.cache_bytes(plan, capacity).saturating_sub(all);
    let free = device.available_bytes()?.map(|free| free.saturating_sub(model + others));
    let budget = if settings.own_memory {
        let host = device.host_available_bytes();
        Budget {
            gpu: settings.kv.gpu_kv.unwrap_or_else(|| most_of(free, all)),
            host: settings.kv.host_kv.unwrap_or_else(|| most_of(host, all)),
        }
    } else if settings.kv.gpu_kv.is_none() && settings.kv.host_kv.is_none() {
        Budget::UNLIMITED
    } else {
        // Both tiers are the same memory: what one does not take is left for the other.
        let left = |taken: Option<u64>| free.map(|free| free.saturating_sub(taken.unwrap_or(0)));
        let gpu = settings.kv.gpu_kv.unwrap_or_else(|| most_of(left(settings.kv.host_kv), all));
        Budget { gpu, host: settings.kv.host_kv.unwrap_or_else(|| most_of(left(Some(gpu)), all)) }
    };
    device.limit_kv(budget, settings.chunk);
    let placement = device.placement(plan, capacity)?;
    let most = match device.placement(plan, MOST_TOKENS) {
        Err(ihip_runtime::Error::Kv(KvError::TooLong { fit, .. })) => fit,
        fits => fits.map(|_| MOST_TOKENS)?,
    };
    Ok(Tiers { tokens: capacity, placement, budget, most, token: all / capacity as u64 })
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
        let Self { tokens, placement: Placement { keys, values, probes }, budget: Budget { gpu, host }, most, token } =
            *self;
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
            grouped(token as usize),
            split(keys),
            split(values),
            kept(probes),
            bytes(gpu as f64),
            bytes(host as f64),
            grouped(most),
        )
    }
}
