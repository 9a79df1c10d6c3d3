//! What was written, before any rule: words, values and where they stand.
//!
//! The tree is the same for every door into the language. `L` is how a door says where something stands: a
//! [`proc_macro2::Span`] for `pruning!`, a range of bytes for TOML.

use std::fmt;

use proc_macro2::TokenStream;

/// A value and the place it was written at.
#[derive(Clone, Debug)]
pub struct Located<T, L> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub at: L,
}

/// `pub Name: Parent { … }`, without the attributes and the visibility that only Rust knows.
#[derive(Clone, Debug)]
pub struct Declaration<L> {
    /// Name of the pipeline.
    pub name: Located<String, L>,
    /// What it inherits from, as its last name has it.
    pub parent: Option<Located<String, L>>,
    /// Doc comment, lines joined by `\n`.
    pub doc: String,
    /// Everything between the braces, in the order it was written.
    pub items: Vec<Item<L>>,
}

/// A word and what follows it.
#[derive(Clone, Debug)]
pub struct Item<L> {
    /// The word, known or not.
    pub word: Located<String, L>,
    /// What follows it.
    pub value: Value<L>,
}

/// What follows a word.
#[derive(Clone, Debug)]
pub enum Value<L> {
    /// Nothing.
    Missing,
    /// A number or a word: `sink 256`, `scan relative`.
    Scalar(Located<Scalar, L>),
    /// Braces: `stage { … }`.
    Block(Vec<Item<L>>),
    /// Layers, counted from 0, and braces: `layers 0..=2 { … }`.
    Layers {
        /// First layer.
        first: Located<Scalar, L>,
        /// Last layer, inclusive; the first one where only one is named.
        last: Located<Scalar, L>,
        /// What is between the braces.
        items: Vec<Item<L>>,
    },
}

/// One token of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A whole number that fits 64 bits.
    Number(u64),
    /// A word.
    Word(String),
    /// More than one name of Rust, such as `sizes::KEEP`.
    Path(Path),
    /// Anything else, as it was written.
    Other(String),
}

/// Names of Rust joined by `::`.
#[derive(Clone, Debug)]
pub struct Path(pub TokenStream);

impl Scalar {
    /// Whether it can name a constant of Rust.
    pub(crate) fn is_path(&self) -> bool {
        match self {
            Self::Word(word) => syn::parse_str::<syn::Ident>(word).is_ok(),
            Self::Path(_) => true,
            Self::Number(_) | Self::Other(_) => false,
        }
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Path {}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string().replace(' ', ""))
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Word(text) | Self::Other(text) => text.fmt(f),
            Self::Path(path) => path.fmt(f),
        }
    }
}

/// A doc comment as every door keeps it: no white space at the end of a line, none around the whole.
pub(crate) fn doc(text: &str) -> String {
    let lines = text.replace("\r\n", "\n");
    let lines: Vec<_> = lines.split(['\r', '\n']).map(str::trim_end).collect();
    lines.join("\n").trim().to_owned()
}
