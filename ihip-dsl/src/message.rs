//! Messages about a file: what they say to write stands there as it does in TOML.
//!
//! A rule has one message, in which pieces of the language stand between backticks as `pruning!` has them. The reader
//! of a file gets the same pieces as the printer of files writes them.

use crate::error::Rule;
use crate::words::{Place, is_choice};
use crate::{parse, print};

/// Stands for what a person wrote while the message around it is put into TOML. No key and no text has it in a message
/// of its own: a private-use character.
const WRITTEN: char = '\u{e000}';

/// The message of `rule`, broken by `excerpt`.
pub(crate) fn of_a_file(rule: &Rule, excerpt: &str) -> String {
    let mut rule = rule.clone();
    let written = rule.written().map(|text| std::mem::replace(text, WRITTEN.to_string()));
    let message = in_toml(&rule.to_string());
    match written {
        Some(written) if unquoted(excerpt) == Some(&written) => message.replace(WRITTEN, excerpt),
        Some(written) => message.replace(WRITTEN, &written),
        None => message,
    }
}

/// A message with every piece of the language as a file has it.
pub(crate) fn in_toml(message: &str) -> String {
    let pieces = message.split('`').enumerate().map(|(index, piece)| match index % 2 {
        1 => toml(piece).unwrap_or_else(|| piece.to_owned()),
        _ => piece.to_owned(),
    });
    pieces.collect::<Vec<_>>().join("`")
}

/// A piece of the language as a file has it; `None` where it is the same there.
fn toml(piece: &str) -> Option<String> {
    if piece.starts_with(|first: char| first.is_ascii_digit()) && piece.contains("..") {
        return Some(print::quoted(piece));
    }
    let item = parse::item(piece)?;
    let alone = item.word.value == piece;
    if alone {
        return is_choice(piece).then(|| print::quoted(piece));
    }
    Place::home(&item.word.value).map(|_| print::pair(&item))
}

/// What stands between the quotes of `text`.
fn unquoted(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|first| ['"', '\''].contains(first))?;
    text.strip_prefix(quote)?.strip_suffix(quote)
}
