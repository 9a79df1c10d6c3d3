//! What kernels count of a cache of two tiers, summed up beyond the 32 bits of a word.
//!
//! At three million tokens a step that renews the first stage counts some 190,000 pages: a pipeline that does so in every
//! step brings a word round in 23,000 of them, `Paper3k` in 370,000. So the words are read before they can have come round
//! once more, between two steps, and what they grew by is added to sums.

use ihip_dsl::emit::{Buffer, tally};

use super::CudaCache;
use crate::Result;

/// Sums of what all layers have counted.
#[derive(Debug)]
pub(super) struct Sums {
    /// The words of each layer as they were last read.
    words: Vec<[u32; tally::WORDS]>,
    sums: [u64; tally::WORDS],
    /// Most that a step adds to a word.
    most: u64,
    /// Most that the steps begun since have added to one.
    since: u64,
}

impl Sums {
    /// Of `layers` layers that have counted nothing so far.
    pub(super) fn new(layers: usize, most: usize) -> Self {
        Self { words: vec![[0; tally::WORDS]; layers], sums: [0; tally::WORDS], most: most as u64, since: 0 }
    }

    /// The sums with what `words` have grown by.
    pub(super) fn with(&self, words: &[[u32; tally::WORDS]]) -> [u64; tally::WORDS] {
        let mut sums = self.sums;
        for (words, before) in words.iter().zip(&self.words) {
            for ((sum, word), before) in sums.iter_mut().zip(words).zip(before) {
                *sum += u64::from(word.wrapping_sub(*before));
            }
        }
        sums
    }

    /// Whether the words have to be read before another step begins.
    const fn is_due(&self) -> bool {
        self.since + self.most > u32::MAX as u64
    }

    /// Has another step begin.
    const fn begin(&mut self) {
        self.since += self.most;
    }

    fn take(&mut self, words: Vec<[u32; tally::WORDS]>) {
        self.sums = self.with(&words);
        self.words = words;
        self.since = 0;
    }
}

impl CudaCache {
    /// The words of each layer.
    pub(super) fn tally_words(&self) -> Result<Vec<[u32; tally::WORDS]>> {
        let words = |layer| {
            let read: Vec<u32> = self.own(layer, Buffer::Tally)?.read(0, tally::WORDS)?;
            Ok(std::array::from_fn(|word| read[word]))
        };
        (0..self.program.plan().layers()).map(words).collect()
    }

    /// Before a step: reads the words where they might come round in it, once the steps before have ended.
    pub(super) fn sum_up(&mut self) -> Result<()> {
        let due = self.tiers.as_ref().is_some_and(|tiers| tiers.sums.is_due());
        let words = if due { Some(self.tally_words()?) } else { None };
        if let Some(tiers) = &mut self.tiers {
            words.into_iter().for_each(|words| tiers.sums.take(words));
            tiers.sums.begin();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_come_round_are_read_before_they_do_so_twice() {
        // Two layers, of which one counts 3 · 2³⁰ pages a step in its first word and the other 5 in its last.
        let step = [3 << 30, 5];
        let mut sums = Sums::new(2, step[0] as usize);
        let mut words = vec![[0_u32; tally::WORDS]; 2];
        for steps in 1..=100_u64 {
            if sums.is_due() {
                sums.take(words.clone());
            }
            sums.begin();
            words[0][0] = words[0][0].wrapping_add(step[0] as u32);
            words[1][tally::WORDS - 1] += step[1] as u32;
            let all = sums.with(&words);
            assert_eq!([all[0], all[tally::WORDS - 1]], step.map(|counted| counted * steps));
        }
    }

    #[test]
    fn words_are_read_no_more_often_than_they_have_to_be() {
        let mut sums = Sums::new(1, 200_000);
        let reads = (0..100_000).filter(|_| {
            let due = sums.is_due();
            if due {
                sums.take(vec![[0; tally::WORDS]]);
            }
            sums.begin();
            due
        });
        // 2³² / 200,000 steps are 21,474.
        assert_eq!(reads.count(), 4);
    }
}
