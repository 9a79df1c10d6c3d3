//! What can be wrong with a declaration: one variant a rule, with the numbers that broke it and a way out.

use std::fmt;

use thiserror::Error;

use crate::clash::Clash;
use crate::words::{Place, nearest};

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
    /// A sign that other languages have between a word and its value.
    #[error("found `{sign}` between `{word}` and what it takes: leave it out")]
    SignBeforeValue {
        /// The word.
        word: String,
        /// The sign.
        sign: String,
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
    #[error("`{name}` becomes part of kernel names: use at most {most} ASCII letters, digits and `_`, a letter first")]
    InvalidName {
        /// The name.
        name: String,
        /// Letters at most.
        most: usize,
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

    /// A pipeline to inherit from that is not there.
    #[error("no pipeline is called `{name}`: {}", among(.name, .known))]
    UnknownParent {
        /// The name.
        name: String,
        /// Names of those that are there.
        known: Vec<String>,
    },

    /// A pipeline that inherits from itself.
    #[error("`{name}` inherits from itself: name another pipeline, or none")]
    ParentOfItself {
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
    #[error("`{word}` stands in {place} but belongs to {}: move it there", homes.iter().map(|home| home.name()).collect::<Vec<_>>().join(" or "))]
    MisplacedWord {
        /// The word.
        word: &'static str,
        /// Where it stands.
        place: Place,
        /// Where it may stand.
        homes: Vec<Place>,
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
    /// A word that says it all by itself.
    #[error("`{word}` takes no value: write `{word};`")]
    UnwantedValue {
        /// The word.
        word: &'static str,
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

    /// A number that no word takes, or words that do not go together.
    #[error("{0}")]
    Clash(Clash),
}

impl Rule {
    /// What of the message was written by a person, or said by another parser.
    pub(crate) fn written(&mut self) -> Option<&mut String> {
        match self {
            Self::Unexpected { found: text, .. }
            | Self::MissingSeparator { after: text, .. }
            | Self::Toml { problem: text }
            | Self::InvalidName { name: text, .. }
            | Self::ReservedName { name: text }
            | Self::RepeatedName { name: text }
            | Self::UnknownParent { name: text, .. }
            | Self::ParentOfItself { name: text }
            | Self::SignBeforeValue { word: text, .. }
            | Self::UnknownWord { word: text, .. }
            | Self::NotANumber { found: text, .. }
            | Self::UnknownMode { mode: text, .. } => Some(text),
            _ => None,
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

fn among(name: &str, known: &[String]) -> String {
    let known: Vec<_> = known.iter().map(String::as_str).collect();
    match known.as_slice() {
        [] => "inherit from one that stands above, or from none".to_owned(),
        known => suggestion(nearest(name, known), known),
    }
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
