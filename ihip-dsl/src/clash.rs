//! What can be wrong between the words of a declaration, and with a single number: one variant a rule.
//!
//! A clash is plain data, found by constants as well as by programs, and has one text for both: the compiler shows it
//! where a number is a constant of Rust or inherited from a pipeline that `pruning!` cannot see.

use std::fmt;

use crate::text::Argument::{Layers, Number, Ways as Near, Word};
use crate::text::{Text, Ways};
use crate::words::Place;

/// A rule of the language and the numbers that broke it.
///
/// Every message says what is wrong, within which limit, and what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clash {
    // Single numbers.
    /// Less than a word takes.
    TooSmall {
        /// The word.
        word: &'static str,
        /// What was written.
        number: i128,
        /// Least value.
        least: u32,
        /// Greatest value.
        most: u32,
    },
    /// A number above the limit of its word.
    TooLarge {
        /// The word.
        word: &'static str,
        /// What was written.
        number: u64,
        /// Greatest value.
        most: u32,
    },
    /// Prompts are read in segments, which hold whole query blocks.
    QueryBlockNotWhole {
        /// Queries of a block.
        query_block: u32,
        /// Tokens of a segment.
        segment: u32,
        /// What would do.
        ways: Ways,
    },

    // Words.
    /// A word that has to be there.
    MissingWord {
        /// The word.
        word: &'static str,
        /// Where it should stand.
        place: Place,
        /// How it may look.
        example: &'static str,
    },
    /// Something that prunes, and nothing that is pruned.
    DenseWithWords {
        /// A word that says how keys are pruned.
        word: &'static str,
    },

    // Stages.
    /// More stages than a pipeline may have.
    TooManyStages {
        /// Most stages.
        most: u32,
    },
    /// The first stage names a budget for its input.
    FirstStageWithKeep {
        /// Tokens kept.
        keep: u32,
    },
    /// A later stage names none.
    LaterStageWithoutKeep {
        /// A number that would do.
        example: u32,
    },
    /// Whole chunks enter a stage.
    KeepNotMultiple {
        /// Tokens kept.
        keep: u32,
        /// Chunk of the stage before.
        chunk: u32,
        /// What would do.
        ways: Ways,
    },
    /// A chunk is cut into whole chunks.
    ChunkDoesNotDivide {
        /// Tokens of a chunk.
        chunk: u32,
        /// Tokens of a chunk of the stage before.
        before: u32,
        /// What would do.
        ways: Ways,
    },
    /// Queries are averaged in whole groups.
    StrideDoesNotDivide {
        /// Queries averaged.
        query_stride: u32,
        /// Queries of a block.
        query_block: u32,
        /// What would do.
        ways: Ways,
    },
    /// A query block is split into whole query blocks.
    QueryBlockDoesNotDivide {
        /// Queries of a block.
        query_block: u32,
        /// Queries of a block of the stage before.
        before: u32,
        /// What would do.
        ways: Ways,
    },
    /// A word about halving in a stage that does not halve.
    NothingIsHalved {
        /// The word.
        word: &'static str,
        /// What was written.
        value: &'static str,
        /// What stands for a chunk instead.
        representative: &'static str,
    },
    /// One summary cannot stand for keys that each have a position of their own.
    SummaryOfMovingKeys {
        /// What stands for a chunk.
        representative: &'static str,
        /// The mode of the scan.
        rope: &'static str,
    },
    /// Nothing is ranked without a stage.
    RankingWithoutStages {
        /// Which heads share a ranking.
        ranking: &'static str,
    },

    // Sink, window and last cut.
    /// Blocks start at multiples of the last chunk, and so must what follows the sink.
    SinkNotMultiple {
        /// Tokens of the sink.
        sink: u32,
        /// Last chunk.
        chunk: u32,
        /// What would do.
        ways: Ways,
    },
    /// A probe could read a key after its query.
    WindowTooShort {
        /// Tokens of the window.
        window: u32,
        /// First chunk.
        chunk: u32,
        /// `2 · chunk − 1`.
        least: u32,
    },
    /// The attention reads whole chunks.
    LastCutNotMultiple {
        /// Tokens kept.
        keep: u32,
        /// Last chunk.
        chunk: u32,
        /// What would do.
        ways: Ways,
    },
    /// Nothing is cut where nothing was ranked.
    LastCutWithoutStages {
        /// Tokens kept.
        keep: u32,
    },

    // Rotary positions.
    /// Nothing is scanned without a stage.
    ScanWithoutStages {
        /// The mode.
        scan: &'static str,
    },
    /// A cache of rotated keys cannot be scanned at other positions.
    ScanOfRotatedCache {
        /// `scan`, or `rope` in a stage.
        word: &'static str,
        /// The mode of the scan.
        scan: &'static str,
    },
    /// Prefill and decode share one cache.
    CachesDiffer {
        /// The phase whose keys are cached rotated.
        rotated: &'static str,
        /// Whether that is because it is dense.
        dense: bool,
        /// The other phase.
        other: &'static str,
        /// Its mode.
        attend: &'static str,
    },

    // Layers.
    /// A range that ends before it starts.
    BackwardsRange {
        /// First layer.
        first: u32,
        /// Last layer.
        last: u32,
    },
    /// A layer with two overrides.
    OverlappingLayers {
        /// First layer.
        first: u32,
        /// Last layer.
        last: u32,
        /// First layer of the override above.
        other_first: u32,
        /// Last layer of the override above.
        other_last: u32,
    },
}

impl Clash {
    /// What is wrong with `number` as the value of `word`.
    pub(crate) const fn of_number(word: &'static str, least: u32, most: u32, number: i128) -> Option<Self> {
        if number < least as i128 {
            Some(Self::TooSmall { word, number, least, most })
        } else if number > most as i128 {
            let number = if number > u64::MAX as i128 { u64::MAX } else { number as u64 };
            Some(Self::TooLarge { word, number, most })
        } else {
            None
        }
    }

    /// For the expansion of `pruning!`: stops the build where `word` does not take `number`, and says why.
    ///
    /// # Panics
    /// Where it does not.
    #[track_caller]
    pub const fn refuse(word: &'static str, least: u32, most: u32, number: i128) {
        if let Some(clash) = Self::of_number(word, least, most, number) {
            panic!("{}", clash.message().as_str());
        }
    }

    /// What is wrong, within which limit, and what to write instead.
    #[must_use]
    pub const fn message(&self) -> Text {
        match *self {
            Self::TooSmall { word, number: 0, least, most } => Text::new(
                "`{} 0` leaves nothing to work with: write a number from {} to {}",
                &[Word(word), n(least), n(most)],
            ),
            Self::TooSmall { word, number, least, most } => Text::new(
                "`{} -{}` is less than nothing: write a number from {} to {}",
                &[Word(word), Number(number.unsigned_abs() as u64), n(least), n(most)],
            ),
            Self::TooLarge { word, number, most } => Text::new(
                "`{} {}` is over the limit of {}: write {} or less",
                &[Word(word), Number(number), n(most), n(most)],
            ),
            Self::QueryBlockNotWhole { query_block, segment, ways } => Text::new(
                "`query_block {}` does not divide {}, the tokens of a segment of the prompt: write {}",
                &[n(query_block), n(segment), Near(ways)],
            ),
            Self::MissingWord { word, place, example } => {
                Text::new("{} needs `{}`: add `{}`", &[Word(place.name()), Word(word), Word(example)])
            }
            Self::DenseWithWords { word } => Text::new(
                "`dense` attends to every key and leaves nothing to `{}`: remove one of the two",
                &[Word(word)],
            ),
            Self::TooManyStages { most } => Text::new(
                "a stage too many: a pipeline has {} stages at most, so remove one or let one keep what two kept",
                &[n(most)],
            ),
            Self::FirstStageWithKeep { keep } => Text::new(
                "`keep {}` has no stage before it: the first stage sees every key, so remove it or add a stage above",
                &[n(keep)],
            ),
            Self::LaterStageWithoutKeep { example } => Text::new(
                "a stage after the first needs `keep`, the tokens that enter it: add a multiple of the chunk before, such as `keep {}`",
                &[n(example)],
            ),
            Self::KeepNotMultiple { keep, chunk, ways } => Text::new(
                "`keep {}` is no multiple of {}, the chunk of the stage before: write {}",
                &[n(keep), n(chunk), Near(ways)],
            ),
            Self::ChunkDoesNotDivide { chunk, before, ways } => Text::new(
                "`chunk {}` does not divide {}, the chunk of the stage before: write {}",
                &[n(chunk), n(before), Near(ways)],
            ),
            Self::StrideDoesNotDivide { query_stride, query_block, ways } => Text::new(
                "`query_stride {}` does not divide {}, the query block of its stage: write {}",
                &[n(query_stride), n(query_block), Near(ways)],
            ),
            Self::QueryBlockDoesNotDivide { query_block, before, ways } => Text::new(
                "`query_block {}` does not divide {}, the query block of the stage before: write {}",
                &[n(query_block), n(before), Near(ways)],
            ),
            Self::NothingIsHalved { word, value, representative } => Text::new(
                "`{} {}` says how a chunk is halved, and `representative {}` halves nothing: remove `{}`, or write `representative halving`",
                &[Word(word), Word(value), Word(representative), Word(word)],
            ),
            Self::SummaryOfMovingKeys { representative, rope } => Text::new(
                "`representative {}` sums a chunk up once, and `{}` moves its keys apart with every query: write `representative exact` or `halving`, or scan at other positions",
                &[Word(representative), Word(rope)],
            ),
            Self::RankingWithoutStages { ranking } => Text::new(
                "`ranking {}` has nothing to rank without a stage: remove it, or add a `stage`",
                &[Word(ranking)],
            ),
            Self::SinkNotMultiple { sink, chunk, ways } => {
                Text::new("`sink {}` is no multiple of {}, the last chunk: write {}", &[n(sink), n(chunk), Near(ways)])
            }
            Self::WindowTooShort { window, chunk, least } => Text::new(
                "`window {}` is under {}, twice the first chunk of {} less one, and a probe could read past its query: write `window {}` or more, or a smaller first chunk",
                &[n(window), n(least), n(chunk), n(least)],
            ),
            Self::LastCutNotMultiple { keep, chunk, ways } => {
                Text::new("`keep {}` is no multiple of {}, the last chunk: write {}", &[n(keep), n(chunk), Near(ways)])
            }
            Self::LastCutWithoutStages { keep } => {
                Text::new("`keep {}` has nothing to cut without a stage: remove `attend`, or add a `stage`", &[n(keep)])
            }
            Self::ScanWithoutStages { scan } => {
                Text::new("`scan {}` has nothing to scan without a stage: remove it, or add a `stage`", &[Word(scan)])
            }
            Self::ScanOfRotatedCache { word, scan } => Text::new(
                "`attend none` caches keys already rotated, so `{} {}` would rotate them twice: write `{} none`, or another mode for `attend`",
                &[Word(word), Word(scan), Word(word)],
            ),
            Self::CachesDiffer { rotated, dense: true, other, attend } => Text::new(
                "both phases read one cache: `dense` in `{}` has its keys rotated, `attend {}` in `{}` wants them as they are: write `rope { scan none, attend none }` in `{}`, or leave `dense` out",
                &[Word(rotated), Word(attend), Word(other), Word(other)],
            ),
            Self::CachesDiffer { rotated, dense: false, other, attend } => Text::new(
                "both phases read one cache: `attend none` in `{}` has its keys rotated, `attend {}` in `{}` wants them as they are: write `attend none` in both, or in neither",
                &[Word(rotated), Word(attend), Word(other)],
            ),
            Self::BackwardsRange { first, last } => {
                Text::new("`{}..={}` ends before it starts: write `{}..={}`", &[n(first), n(last), n(last), n(first)])
            }
            Self::OverlappingLayers { first, last, other_first, other_last } => Text::new(
                "`layers {}` overlaps `layers {}` above: give every layer to one of them",
                &[Layers(first, last), Layers(other_first, other_last)],
            ),
        }
    }
}

const fn n(number: u32) -> crate::text::Argument {
    Number(number as u64)
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message().as_str())
    }
}
