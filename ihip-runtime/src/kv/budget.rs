//! Budgets: how many slots each pool gets in either tier.
//!
//! The scan touches keys of every chunk, the attention few values: keys have the first claim on the GPU, values the last.

use super::error::KvError;

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers of the model.
    pub layers: usize,
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of a page.
    pub page: usize,
    /// Tokens of the longest step.
    pub rows: usize,
}

/// Bytes that a cache may take in each tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// On the GPU.
    pub gpu: u64,
    /// On the host.
    pub host: u64,
}

impl Budget {
    /// Whatever is needed.
    pub const UNLIMITED: Self = Self { gpu: u64::MAX, host: u64::MAX };
}

/// Slots of a pool in each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// On the GPU.
    pub gpu: usize,
    /// On the host.
    pub host: usize,
}

/// Slots of every layer's pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Of the keys.
    pub keys: Slots,
    /// Of the values.
    pub values: Slots,
}

impl Shape {
    /// Bytes of a page of keys, or of values, of one layer: f32.
    #[must_use]
    pub const fn page_bytes(&self) -> u64 {
        (self.kv_heads * self.page * self.head_dim * size_of::<f32>()) as u64
    }

    /// Bytes of a token: keys and values of all layers.
    #[must_use]
    pub const fn token_bytes(&self) -> u64 {
        2 * self.layers as u64 * self.page_bytes() / self.page as u64
    }

    /// Slots on the GPU that a pool cannot do without while pages move: a step's new tokens, which begin and end within
    /// pages, and one that a page comes back to.
    #[must_use]
    pub const fn least(&self) -> usize {
        self.rows.div_ceil(self.page) + 2
    }
}

impl Room {
    /// Slots for requests of `tokens` tokens in all, within `budget`.
    ///
    /// Every pool is either whole on the GPU or has a free slot there, through which pages move.
    ///
    /// # Errors
    /// [`KvError::TooLong`] where they do not fit, with how many would.
    pub fn within(shape: &Shape, tokens: usize, budget: Budget) -> Result<Self, KvError> {
        let pages = tokens.div_ceil(shape.page);
        Self::of_pages(shape, pages, budget).ok_or_else(|| {
            let fit = most(pages, |pages| Self::of_pages(shape, pages, budget).is_some());
            let Budget { gpu, host } = budget;
            let slots = 2 * shape.least().min(pages) as u64;
            let least = slots * shape.page_bytes() * shape.layers as u64;
            KvError::TooLong { tokens, gpu, host, least, fit: fit * shape.page, token: shape.token_bytes() }
        })
    }

    fn of_pages(shape: &Shape, pages: usize, budget: Budget) -> Option<Self> {
        let slots = |bytes: u64| (bytes / (shape.page_bytes() * shape.layers as u64)) as usize;
        let (gpu, host) = (slots(budget.gpu), slots(budget.host));
        // Keys take all that leaves values what they cannot do without.
        let least = shape.least().min(pages);
        let keys = Slots::with(pages, gpu.checked_sub(least)?, least)?;
        let values = Slots::with(pages, gpu - keys.gpu, least)?;
        (keys.host + values.host <= host).then_some(Self { keys, values })
    }
}

impl Slots {
    /// A pool of `pages` pages with at most `gpu` slots on the GPU; `None` where these are less than `least`.
    fn with(pages: usize, gpu: usize, least: usize) -> Option<Self> {
        if gpu >= pages {
            return Some(Self { gpu: pages, host: 0 });
        }
        // One slot stays free.
        (gpu >= least).then(|| Self { gpu, host: pages - (gpu - 1) })
    }
}

/// The greatest number below `too_many` that fits, where every smaller one does as well; 0 where none does.
pub fn most(mut too_many: usize, mut fits: impl FnMut(usize) -> bool) -> usize {
    let mut fit = 0;
    while too_many > fit + 1 {
        let middle = fit.midpoint(too_many);
        if fits(middle) {
            fit = middle;
        } else {
            too_many = middle;
        }
    }
    fit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHAPE: Shape = Shape { layers: 2, kv_heads: 3, head_dim: 8, page: 16, rows: 64 };
    /// Bytes of a slot in every layer.
    const SLOT: u64 = 2 * 3 * 8 * 16 * 4;

    #[test]
    fn keys_come_first_and_values_last() {
        let room = |gpu, host| Room::within(&SHAPE, 1600, Budget { gpu: gpu * SLOT, host: host * SLOT });
        let all = Slots { gpu: 100, host: 0 };
        assert_eq!(room(200, 0), Ok(Room { keys: all, values: all }));
        assert_eq!(room(150, 51), Ok(Room { keys: all, values: Slots { gpu: 50, host: 51 } }));
        let least = Slots { gpu: 6, host: 95 };
        assert_eq!(room(50, 152), Ok(Room { keys: Slots { gpu: 44, host: 57 }, values: least }));
        assert_eq!(room(12, 190), Ok(Room { keys: least, values: least }));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let error =
            Room::within(&SHAPE, 1600, Budget { gpu: 12 * SLOT, host: 100 * SLOT }).expect_err("90 slots short");
        assert_eq!(
            error.to_string(),
            "1600 tokens do not fit: 36864 bytes on the GPU and 307200 on the host hold 880 (384 bytes a token); \
             shorten the prompt or raise a budget"
        );
        let nothing =
            Room::within(&SHAPE, 1, Budget { gpu: SLOT, host: 0 }).expect_err("keys and values need a slot each");
        assert!(matches!(nothing, KvError::TooLong { fit: 0, .. }), "{nothing}");
    }

    proptest! {
        #[test]
        fn what_is_given_out_is_within_the_budget_and_holds_every_token(
            tokens in 1_usize..5000, gpu in 0_u64..700, host in 0_u64..700,
        ) {
            let budget = Budget { gpu: gpu * SLOT, host: host * SLOT };
            let held = |slots: Slots| if slots.host == 0 { slots.gpu } else { slots.gpu - 1 + slots.host };
            match Room::within(&SHAPE, tokens, budget) {
                Ok(Room { keys, values }) => {
                    prop_assert!((keys.gpu + values.gpu) as u64 <= gpu && (keys.host + values.host) as u64 <= host);
                    prop_assert!(held(keys) >= tokens.div_ceil(16) && held(values) >= tokens.div_ceil(16));
                    prop_assert!(values.gpu <= keys.gpu);
                }
                Err(KvError::TooLong { fit, .. }) => {
                    prop_assert!(fit < tokens);
                    prop_assert!(fit == 0 || Room::within(&SHAPE, fit, budget).is_ok());
                    prop_assert!(Room::within(&SHAPE, fit + 16, budget).is_err());
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
