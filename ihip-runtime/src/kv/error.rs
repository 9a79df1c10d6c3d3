//! What can go wrong with a cache of two tiers.

use std::fmt;

use thiserror::Error;

use super::pool::Tier;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

impl Kind {
    /// Keys, then values.
    pub const ALL: [Self; 2] = [Self::Keys, Self::Values];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keys => "keys",
            Self::Values => "values",
        })
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpu => "GPU",
            Self::Host => "host",
        })
    }
}

/// Errors of the cache.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KvError {
    /// Memory of a tier that cannot be had.
    #[error("the {kind} of layer {layer} need {bytes} bytes of {tier} memory, which cannot be had: lower the budget")]
    Allocation {
        /// What it is for.
        kind: Kind,
        /// The layer.
        layer: usize,
        /// The tier.
        tier: Tier,
        /// Bytes asked for.
        bytes: u64,
    },
    /// A request that does not fit the budgets.
    #[error(
        "{tokens} tokens do not fit: {gpu} bytes on the GPU and {host} on the host hold {fit} ({token} bytes a token); \
         shorten the prompt or raise a budget{}",
        if gpu < least { format!(", that of the GPU to {least} bytes at least: pages move through them") } else { String::new() }
    )]
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// Budget on the GPU in bytes.
        gpu: u64,
        /// Budget on the host in bytes.
        host: u64,
        /// Bytes on the GPU that so many tokens cannot do without.
        least: u64,
        /// Tokens that fit.
        fit: usize,
        /// Bytes of a token.
        token: u64,
    },
    /// Pages that do not fit what is there.
    #[error(
        "{pages} more pages of {kind} in layer {layer} do not fit: {gpu} slots on the GPU and {host} on the host are free"
    )]
    Full {
        /// Pages asked for.
        pages: usize,
        /// What they hold.
        kind: Kind,
        /// The layer.
        layer: usize,
        /// Free slots on the GPU.
        gpu: usize,
        /// Free slots on the host.
        host: usize,
    },
}
