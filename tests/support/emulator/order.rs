//! In which order threads and blocks take their turns.

/// An order that a GPU might choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Lower numbers first.
    #[default]
    Ascending,
    /// Higher numbers first.
    Descending,
    /// A new choice at every turn, the same for the same seed.
    Random(u64),
}

impl Order {
    pub(super) const fn is_random(self) -> bool {
        matches!(self, Self::Random(_))
    }

    pub(super) const fn seed(self) -> u64 {
        match self {
            Self::Random(seed) => seed,
            Self::Ascending | Self::Descending => 0,
        }
    }

    /// Which of `count` starts.
    pub(super) fn first(self, count: usize, random: &mut Random) -> usize {
        match self {
            Self::Ascending => 0,
            Self::Descending => count - 1,
            Self::Random(_) => random.below(count),
        }
    }

    /// The bit of `ready` whose turn it is after `from`'s.
    pub(super) fn pick(self, ready: u32, from: usize, random: &mut Random) -> Option<usize> {
        if ready == 0 {
            return None;
        }
        let bit = match self {
            Self::Ascending => {
                let above = ready & (u32::MAX << from) & !(1 << from);
                (if above == 0 { ready } else { above }).trailing_zeros()
            }
            Self::Descending => {
                let below = ready & !(u32::MAX << from);
                (if below == 0 { ready } else { below }).ilog2()
            }
            Self::Random(_) => {
                let mut left = ready;
                for _ in 0..random.below(ready.count_ones() as usize) {
                    left &= left - 1;
                }
                left.trailing_zeros()
            }
        };
        Some(bit as usize)
    }

    /// The numbers below `count` in this order.
    pub(super) fn all(self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        match self {
            Self::Ascending => {}
            Self::Descending => numbers.reverse(),
            Self::Random(seed) => {
                let mut random = Random::new(seed);
                for unplaced in (1..count).rev() {
                    numbers.swap(unplaced, random.below(unplaced + 1));
                }
            }
        }
        numbers
    }
}

/// SplitMix64: small, and the same everywhere, so that a seed in a message reproduces a failure.
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    pub(super) const fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    pub(super) const fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}
