//! What can be wrong with a declaration: one variant a rule, with the numbers that broke it and a way out.

use std::fmt;

use thiserror::Error;

use crate::words::Place;

/// A broken rule and the token that broke it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error<L> {
    /// Where the token stands.
    pub at: L,
    /// The rule.
    pub rule: Rule,
}

/// Every rule that a text breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors<L>(Vec<Error<L>>);

/// Line and column in a text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// From where to where something stands in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region {
    /// Its first character.
    pub start: Position,
    /// What follows its last character.
    pub end: Position,
}

/// A rule of the language and the numbers that broke it.
///
/// Every message says what is wrong, within which limit, and what to write instead.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rule {
    // What is not even a word and a value.
    /// A token that no declaration has in this place.
    #[error("found `{found}` where {expected} should stand")]
    Unexpected {
        /// The token, as it was written.
        found: String,
        /// What may stand here.
        expected: &'static str,
    },
    /// A `;` or a `,` is not there.
    #[error("no `{separator}` follows: write `{after}{separator}`")]
    MissingSeparator {
        /// The word and its value.
        after: String,
        /// What should follow.
        separator: char,
    },
    /// A word stands alone.
    #[error("`{word}` stands alone: give it a value, such as `{example}`")]
    MissingValue {
        /// The word.
        word: &'static str,
        /// How it may look.
        example: &'static str,
    },

    /// A file that is no TOML.
    #[error("this is no TOML: {problem}")]
    Toml {
        /// What the parser says.
        problem: String,
    },

    // Names.
    /// A name that kernels cannot bear.
    #[error("`{name}` becomes part of kernel names: use ASCII letters, digits and `_`, a letter first")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// A name that means something else already.
    #[error("`{name}` stands for attention without pruning: choose another name")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// Two declarations of one name.
    #[error("`{name}` is declared twice: rename or remove one")]
    RepeatedName {
        /// The name.
        name: String,
    },

    // Words.
    /// A word that stands nowhere in the language.
    #[error("{place} has no word `{word}`: {}", suggestion(*.nearest, .known))]
    UnknownWord {
        /// The word.
        word: String,
        /// Where it stands.
        place: Place,
        /// The word that was probably meant.
        nearest: Option<&'static str>,
        /// Words that may stand here.
        known: Vec<&'static str>,
    },
    /// A word of another place.
    #[error("`{word}` stands in {place} but belongs to {home}: move it there")]
    MisplacedWord {
        /// The word.
        word: &'static str,
        /// Where it stands.
        place: Place,
        /// Where it may stand.
        home: Place,
    },
    /// A word that has to be there.
    #[error("{place} needs `{word}`: add `{example}`")]
    MissingWord {
        /// The word.
        word: &'static str,
        /// Where it should stand.
        place: Place,
        /// How it may look.
        example: &'static str,
    },
    /// A word that may stand once, and stands again.
    #[error("`{word}` stands a second time in {place}: keep one of the two")]
    RepeatedWord {
        /// The word.
        word: &'static str,
        /// Where it stands.
        place: Place,
    },

    // Values.
    /// Something else than a number.
    #[error("`{word}` takes a whole number from {least} to {most}, not `{found}`: write it such as `{example}`")]
    NotANumber {
        /// The word.
        word: &'static str,
        /// What was written.
        found: String,
        /// Least value.
        least: u32,
        /// Greatest value.
        most: u32,
        /// How it may look.
        example: &'static str,
    },
    /// Nothing of something that has to be there.
    #[error("`{word} 0` leaves nothing to work with: write a number from {least} to {most}")]
    Zero {
        /// The word.
        word: &'static str,
        /// Least value.
        least: u32,
        /// Greatest value.
        most: u32,
    },
    /// A number above the limit of its word.
    #[error("`{word} {number}` is over the limit of {most}: write {most} or less")]
    TooLarge {
        /// The word.
        word: &'static str,
        /// What was written.
        number: u64,
        /// Greatest value.
        most: u32,
    },
    /// A word that needs braces has none.
    #[error("`{word}` takes a block: write it such as `{example}`")]
    NotABlock {
        /// The word.
        word: &'static str,
        /// How it may look.
        example: &'static str,
    },
    /// A rotary mode that is none.
    #[error("`{word}` has no mode `{mode}`: {}", suggestion(*.nearest, .known))]
    UnknownMode {
        /// `scan` or `attend`.
        word: &'static str,
        /// What was written.
        mode: String,
        /// The mode that was probably meant.
        nearest: Option<&'static str>,
        /// Every mode.
        known: Vec<&'static str>,
    },

    // Stages.
    /// The first stage names a budget for its input.
    #[error("`keep {keep}` has no stage before it: the first stage sees every key, so remove it or add a stage above")]
    FirstStageWithKeep {
        /// Tokens kept.
        keep: u32,
    },
    /// A later stage names none.
    #[error(
        "a stage after the first needs `keep`, the tokens that enter it: add a multiple of the chunk before, such as `keep {example}`"
    )]
    LaterStageWithoutKeep {
        /// A number that would do.
        example: u32,
    },
    /// Whole chunks enter a stage.
    #[error("`keep {keep}` is no multiple of {chunk}, the chunk of the stage before: write {ways}")]
    KeepNotMultiple {
        /// Tokens kept.
        keep: u32,
        /// Chunk of the stage before.
        chunk: u32,
        /// What would do.
        ways: Ways,
    },
    /// A chunk is cut into whole chunks.
    #[error("`chunk {chunk}` does not divide {before}, the chunk of the stage before: write {ways}")]
    ChunkDoesNotDivide {
        /// Tokens of a chunk.
        chunk: u32,
        /// Tokens of a chunk of the stage before.
        before: u32,
        /// What would do.
        ways: Ways,
    },
    /// Queries are averaged in whole groups.
    #[error("`query_stride {query_stride}` does not divide {query_block}, the query block of its stage: write {ways}")]
    StrideDoesNotDivide {
        /// Queries averaged.
        query_stride: u32,
        /// Queries of a block.
        query_block: u32,
        /// What would do.
        ways: Ways,
    },
    /// A query block is split into whole query blocks.
    #[error("`query_block {query_block}` does not divide {before}, the query block of the stage before: write {ways}")]
    QueryBlockDoesNotDivide {
        /// Queries of a block.
        query_block: u32,
        /// Queries of a block of the stage before.
        before: u32,
        /// What would do.
        ways: Ways,
    },

    /// A word about halving in a stage that does not halve.
    #[error(
        "`{word} {value}` says how a chunk is halved, and `representative {representative}` halves nothing: remove `{word}`, or write `representative halving`"
    )]
    NothingIsHalved {
        /// The word.
        word: &'static str,
        /// What was written.
        value: &'static str,
        /// What stands for a chunk instead.
        representative: &'static str,
    },
    /// One summary cannot stand for keys that each have a position of their own.
    #[error(
        "`representative {representative}` sums a chunk up once, and `{rope}` moves its keys apart with every query: write `representative exact` or `halving`, or scan at other positions"
    )]
    SummaryOfMovingKeys {
        /// What stands for a chunk.
        representative: &'static str,
        /// The mode of the scan.
        rope: &'static str,
    },
    /// Nothing is ranked without a stage.
    #[error("`ranking {ranking}` has nothing to rank without a stage: remove it, or add a `stage`")]
    RankingWithoutStages {
        /// Which heads share a ranking.
        ranking: &'static str,
    },

    // Sink, window and last cut.
    /// Blocks start at multiples of the last chunk, and so must what follows the sink.
    #[error("`sink {sink}` is no multiple of {chunk}, the last chunk: write {ways}")]
    SinkNotMultiple {
        /// Tokens of the sink.
        sink: u32,
        /// Last chunk.
        chunk: u32,
        /// What would do.
        ways: Ways,
    },
    /// A probe could read a key after its query.
    #[error(
        "`window {window}` is under {least}, twice the first chunk of {chunk} less one, and a probe could read past its query: \
         write `window {least}` or more, or a smaller first chunk"
    )]
    WindowTooShort {
        /// Tokens of the window.
        window: u32,
        /// First chunk.
        chunk: u32,
        /// `2 · chunk − 1`.
        least: u32,
    },
    /// The attention reads whole chunks.
    #[error("`keep {keep}` is no multiple of {chunk}, the last chunk: write {ways}")]
    LastCutNotMultiple {
        /// Tokens kept.
        keep: u32,
        /// Last chunk.
        chunk: u32,
        /// What would do.
        ways: Ways,
    },
    /// Nothing is cut where nothing was ranked.
    #[error("`keep {keep}` has nothing to cut without a stage: remove `attend`, or add a `stage`")]
    LastCutWithoutStages {
        /// Tokens kept.
        keep: u32,
    },

    // Rotary positions.
    /// Nothing is scanned without a stage.
    #[error("`scan {scan}` has nothing to scan without a stage: remove it, or add a `stage`")]
    ScanWithoutStages {
        /// The mode.
        scan: &'static str,
    },
    /// A cache of rotated keys cannot be scanned at other positions.
    #[error(
        "`attend none` caches keys already rotated, so `{word} {scan}` would rotate them twice: write `{word} none`, or another mode for `attend`"
    )]
    ScanOfRotatedCache {
        /// `scan`, or `rope` in a stage.
        word: &'static str,
        /// The mode of the scan.
        scan: &'static str,
    },

    // Layers.
    /// `layers` without layers.
    #[error("`layers` names layers counted from 0 and a block: write it such as `{example}`")]
    NotLayers {
        /// How it may look.
        example: &'static str,
    },
    /// A range without its last layer.
    #[error("`{first}..{end}` does not say whether layer {end} belongs to it: write `{first}..={end}` or `{first}..={}`", end.saturating_sub(1))]
    HalfOpenRange {
        /// First layer.
        first: u64,
        /// What stands after the dots.
        end: u64,
    },
    /// A range that ends before it starts.
    #[error("`{first}..={last}` ends before it starts: write `{last}..={first}`")]
    BackwardsRange {
        /// First layer.
        first: u32,
        /// Last layer.
        last: u32,
    },
    /// A layer with two overrides.
    #[error("`layers {}` overlaps `layers {}` above: give every layer to one of them", range(*.first, *.last), range(*.other_first, *.other_last))]
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

impl Rule {
    /// What of the message was written by a person, or said by another parser.
    pub(crate) fn written(&mut self) -> Option<&mut String> {
        match self {
            Self::Unexpected { found: text, .. }
            | Self::MissingSeparator { after: text, .. }
            | Self::Toml { problem: text }
            | Self::InvalidName { name: text }
            | Self::ReservedName { name: text }
            | Self::RepeatedName { name: text }
            | Self::UnknownWord { word: text, .. }
            | Self::NotANumber { found: text, .. }
            | Self::UnknownMode { mode: text, .. } => Some(text),
            _ => None,
        }
    }
}

/// The nearest numbers on either side that would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    word: &'static str,
    below: Option<u32>,
    above: Option<u32>,
}

impl Ways {
    /// Multiples of `of` around `number`, which is none, within limits.
    #[must_use]
    pub fn multiples(word: &'static str, number: u32, of: u32, least: u32, most: u32) -> Self {
        let below = number / of * of;
        let allowed = |number: &u32| (least..=most).contains(number);
        Self { word, below: Some(below).filter(allowed), above: below.checked_add(of).filter(allowed) }
    }

    /// Divisors of `of` around `number`, which is none.
    #[must_use]
    pub fn divisors(word: &'static str, number: u32, of: u32) -> Self {
        let divides = |candidate: &u32| of.is_multiple_of(*candidate);
        Self { word, below: (1..number.min(of + 1)).rev().find(divides), above: (number..=of).find(divides) }
    }

    /// The numbers, smaller first.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        self.below.into_iter().chain(self.above)
    }
}

impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word;
        let mut numbers = self.numbers();
        match (numbers.next(), numbers.next()) {
            (Some(below), Some(above)) => write!(f, "`{word} {below}` or `{word} {above}`"),
            (Some(only), None) => write!(f, "`{word} {only}`"),
            (None, _) => write!(f, "another `{word}`"),
        }
    }
}

fn suggestion(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => {
            let known: Vec<_> = known.iter().map(|word| format!("`{word}`")).collect();
            match known.as_slice() {
                [only] => format!("choose {only}"),
                [others @ .., last] => format!("choose {} or {last}", others.join(", ")),
                [] => String::new(),
            }
        }
    }
}

fn range(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first}..={last}") }
}

impl<L> Errors<L> {
    /// No error yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a broken rule.
    pub fn push(&mut self, at: L, rule: Rule) {
        self.0.push(Error { at, rule });
    }

    /// Adds what another pass found.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every broken rule, in the order they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Error<L>> {
        self.0.iter()
    }

    /// The same errors with other locations, in the order of those.
    #[must_use]
    pub fn locate<M: Ord>(self, at: impl Fn(L) -> M) -> Errors<M> {
        let mut errors: Vec<_> = self.0.into_iter().map(|error| Error { at: at(error.at), rule: error.rule }).collect();
        errors.sort_by(|a, b| a.at.cmp(&b.at));
        Errors(errors)
    }

    /// `value` if nothing is wrong.
    ///
    /// # Errors
    /// These errors, if there are any.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl<L> Default for Errors<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L> Extend<Error<L>> for Errors<L> {
    fn extend<I: IntoIterator<Item = Error<L>>>(&mut self, errors: I) {
        self.0.extend(errors);
    }
}

impl<L> IntoIterator for Errors<L> {
    type Item = Error<L>;
    type IntoIter = std::vec::IntoIter<Error<L>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, L> IntoIterator for &'a Errors<L> {
    type Item = &'a Error<L>;
    type IntoIter = std::slice::Iter<'a, Error<L>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<L: fmt::Display> fmt::Display for Errors<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Error { at, rule }) in self.iter().enumerate() {
            let line = if index == 0 { "" } else { "\n" };
            write!(f, "{line}{at}: {rule}")?;
        }
        Ok(())
    }
}

impl<L: fmt::Debug + fmt::Display> std::error::Error for Errors<L> {}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.start.fmt(f)
    }
}
