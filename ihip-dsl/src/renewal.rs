//! What a decoding step renews of a layer's block lists (paper §3.2, and the turns of `refresh staggered`).

use std::ops::Range;

/// What a layer renews in a decoding step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Renewal {
    /// The stage from which the lists are renewed; `None` reuses the last ones.
    pub restart: Option<usize>,
    /// Key-value heads that scan the first stage in this step, where not all do so in the step that renews it.
    pub turn: Option<Turn>,
}

/// Key-value heads that scan a layer's first stage in one step. A renewal that is spread over several steps has several
/// of them, one a step; the last one's step cuts, by all that was scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Turn {
    /// The first of them.
    pub first: usize,
    /// How many there are.
    pub heads: usize,
}

impl Renewal {
    /// Key-value heads of a layer of `kv_heads` that scan `stage` in this step; none where it is not scanned.
    #[must_use]
    pub fn heads(&self, stage: usize, kv_heads: usize) -> Range<usize> {
        match self {
            Self { turn: Some(Turn { first, heads }), .. } if stage == 0 => *first..first + heads,
            Self { restart: Some(restart), .. } if *restart <= stage => 0..kv_heads,
            _ => 0..0,
        }
    }

    /// Whether the step makes a new list of what `stage` scored.
    #[must_use]
    pub fn cuts(&self, stage: usize) -> bool {
        self.restart.is_some_and(|restart| restart <= stage)
    }
}

impl From<Option<usize>> for Renewal {
    /// All heads renew their lists from the stage `restart` on in one step.
    fn from(restart: Option<usize>) -> Self {
        Self { restart, turn: None }
    }
}

/// The least common multiple of refresh intervals, each at least 1: after so many steps all of them come again together.
/// `None` where that is more than a `u128` holds.
#[must_use]
pub(crate) fn least_common_multiple(intervals: impl IntoIterator<Item = usize>) -> Option<u128> {
    intervals.into_iter().map(|interval| interval as u128).try_fold(1, |multiple: u128, interval| {
        let (mut divisor, mut rest) = (multiple, interval);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        (multiple / divisor).checked_mul(interval)
    })
}

impl Turn {
    /// Number `turn` of `turns` that share out `kv_heads` heads.
    pub(crate) fn of(turn: usize, turns: usize, kv_heads: usize) -> Self {
        let [first, end] = [turn, turn + 1].map(|turn| turn * kv_heads / turns);
        Self { first, heads: end - first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_multiples_of_intervals_are_found_where_they_can_be_written() {
        assert_eq!(least_common_multiple([96, 32, 8]), Some(96));
        assert_eq!(least_common_multiple([7, 5, 1, 5]), Some(35));
        assert_eq!(least_common_multiple([]), Some(1));
        assert_eq!(least_common_multiple([usize::MAX, usize::MAX]), Some(usize::MAX as u128));
        // Neighbours have no divisor in common.
        assert_eq!(least_common_multiple([usize::MAX, usize::MAX - 1, usize::MAX - 2]), None);
    }
}
