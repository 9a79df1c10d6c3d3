//! The errors of a file as a person reads them: each with its message, its place, and the line with the place
//! underlined.

use std::fmt;

use crate::ast::Located;
use crate::error::{Error, Errors, Region};
use crate::{Warning, message};

/// Errors that are shown; the rest is counted.
const MOST_ERRORS: usize = 20;
/// Characters of a line that are shown.
const MOST_COLUMNS: usize = 100;
/// Characters of a message that are shown: it repeats what was written, however long that is.
const MOST_MESSAGE: usize = 600;

/// Errors of a file; five lines an error, the first without the word `error` before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    text: String,
}

impl Report {
    /// What is wrong with `file`, whose content is `text`.
    #[must_use]
    pub fn new(file: &str, text: &str, errors: &Errors<Region>) -> Self {
        let file = &printable(file);
        let shown = errors.iter().take(MOST_ERRORS).map(|error| excerpt(file, text, error));
        let mut shown: Vec<_> = shown.collect();
        let more = errors.iter().count().saturating_sub(MOST_ERRORS);
        if more > 0 {
            shown.push(format!("{more} more in {file}"));
        }
        Self { text: shown.join("\nerror: ") }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl std::error::Error for Report {}

/// A warning about `file` on one line.
#[must_use]
pub fn warning(file: &str, Located { value, at }: &Located<Warning, Region>) -> String {
    printable(&format!("warning: {file}:{at}: {}", message::in_toml(&value.to_string())))
}

fn excerpt(file: &str, text: &str, Error { at, rule }: &Error<Region>) -> String {
    let number = at.start.line.to_string();
    let margin = " ".repeat(number.len());
    let line = text.split('\n').nth(at.start.line - 1).unwrap_or_default();
    let line: Vec<char> = line.trim_end_matches('\r').chars().collect();
    let start = (at.start.column - 1).min(line.len());
    let end = if at.end.line == at.start.line { at.end.column - 1 } else { line.len() };
    let excerpt: String = line[start..end.clamp(start, line.len())].iter().collect();
    let message = printable(&shortened(&message::of_a_file(rule, &excerpt)));
    let first = if line.len() <= MOST_COLUMNS { 0 } else { start.saturating_sub(MOST_COLUMNS / 2) };
    let last = line.len().min(first + MOST_COLUMNS);
    // A character that moves what follows it would move it away from its underline.
    let shown: String = line[first..last].iter().map(|c| if c.is_control() { ' ' } else { *c }).collect();
    let (before, after) = (if first > 0 { "…" } else { "" }, if last < line.len() { "…" } else { "" });
    let indent = " ".repeat(before.chars().count() + start - first);
    let underline = "^".repeat(end.min(last).saturating_sub(start).max(1));
    format!(
        "{message}\n{margin}--> {file}:{at}\n{margin} |\n{number} | {before}{shown}{after}\n{margin} | {indent}{underline}"
    )
}

/// `message` without its middle, where it is very long.
fn shortened(message: &str) -> String {
    let characters: Vec<char> = message.chars().collect();
    if characters.len() <= MOST_MESSAGE {
        return message.to_owned();
    }
    let (start, end) = (&characters[..MOST_MESSAGE / 2], &characters[characters.len() - MOST_MESSAGE / 2..]);
    format!("{} … {}", String::from_iter(start), String::from_iter(end))
}

/// `text` on one line, without anything that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
