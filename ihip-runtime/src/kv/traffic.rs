//! What a cache of two tiers did, and where the tokens of a request are.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use super::budget::Room;

/// Rows of keys or values that were read, by where they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// On the GPU.
    pub hits: u64,
    /// In place on the host.
    pub misses: u64,
}

impl Reads {
    /// The share that was on the GPU; `None` where nothing was read.
    #[must_use]
    pub fn hit_ratio(self) -> Option<f64> {
        let all = self.hits + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

impl AddAssign for Reads {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

/// Reads as they are counted: many tasks add what they read.
#[derive(Debug, Default)]
pub struct Tally {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Tally {
    pub(super) fn add(&self, reads: Reads) {
        self.hits.fetch_add(reads.hits, Ordering::Relaxed);
        if reads.misses > 0 {
            self.misses.fetch_add(reads.misses, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn reads(&self) -> Reads {
        Reads { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed) }
    }
}

/// What a cache did since it was allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Keys that each stage of the scan read, over all layers; entry `n` is of stage `n`. A GPU counts pages instead: in each
    /// decoding step those of the chunks that entered the stage, by where their page is, even where the scan read a key's copy
    /// in [`Placement::probes`].
    pub stages: Vec<Reads>,
    /// Keys and values that the attention read.
    pub attend: Reads,
    /// Pages brought to the GPU.
    pub promotions: u64,
    /// Pages taken from it.
    pub evictions: u64,
    /// Bytes copied to the GPU for steps of prefill: keys of earlier steps, and values that queries asked for.
    pub streamed_bytes: u64,
    /// Bytes that such steps wrote to the host.
    pub written_bytes: u64,
    /// Bytes of the pages brought to the GPU.
    pub promoted_bytes: u64,
    /// Bytes of the pages taken from it.
    pub evicted_bytes: u64,
    /// Bytes read in place on the host; on a GPU those of whole pages that the attention read, scans not considered.
    pub missed_bytes: u64,
}

impl Traffic {
    /// What all stages and the attention read.
    #[must_use]
    pub fn reads(&self) -> Reads {
        let mut reads = self.attend;
        self.stages.iter().for_each(|stage| reads += *stage);
        reads
    }

    /// What was done since the same cache had done `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let reads =
            |now: Reads, before: Reads| Reads { hits: now.hits - before.hits, misses: now.misses - before.misses };
        let stages = self.stages.iter().enumerate();
        Self {
            stages: stages.map(|(n, now)| reads(*now, before.stages.get(n).copied().unwrap_or_default())).collect(),
            attend: reads(self.attend, before.attend),
            promotions: self.promotions - before.promotions,
            evictions: self.evictions - before.evictions,
            streamed_bytes: self.streamed_bytes - before.streamed_bytes,
            written_bytes: self.written_bytes - before.written_bytes,
            promoted_bytes: self.promoted_bytes - before.promoted_bytes,
            evicted_bytes: self.evicted_bytes - before.evicted_bytes,
            missed_bytes: self.missed_bytes - before.missed_bytes,
        }
    }
}

/// Tokens by the tier that their keys, or their values, are in; the same in every layer, or the mean over layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// On the GPU.
    pub gpu: usize,
    /// On the host.
    pub host: usize,
}

/// Bytes that reading a prompt moves, whatever its tokens are. Values that a step fetches page by page, once its lists say
/// which, hang on the tokens and are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefillMoves {
    /// Keys of earlier steps, and in layers that are dense or begin so their values, to the GPU.
    pub streamed: u64,
    /// Keys and values that were read, to the host: each page once.
    pub written: u64,
}

/// Keys that the GPU holds once more, whatever leaves it: those that the first halvings of every chunk probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Those halvings.
    pub levels: usize,
    /// Bytes of the keys, of all layers.
    pub bytes: u64,
}

/// Where the tokens of a request are, or have room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Of their keys.
    pub keys: Tokens,
    /// Of their values.
    pub values: Tokens,
    /// What the GPU holds besides.
    pub probes: Probes,
}

impl Placement {
    /// The tokens that slots have room for, `page` in each.
    #[must_use]
    pub const fn of_room(room: &Room, page: usize) -> Self {
        let Room { keys, values } = room;
        Self {
            keys: Tokens { gpu: keys.gpu * page, host: keys.host * page },
            values: Tokens { gpu: values.gpu * page, host: values.host * page },
            probes: Probes { levels: 0, bytes: 0 },
        }
    }
}
