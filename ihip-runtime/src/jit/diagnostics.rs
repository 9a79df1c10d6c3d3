//! The compiler's complaints, each with the text around it.

use std::fmt;

/// Lines shown before and after the one complained about.
const CONTEXT: usize = 3;

/// Complaints shown in full: one mistake in a template raises dozens, and the first ones name it.
const SHOWN: usize = 4;

/// The errors of one compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    /// Each error at its line; empty where the compiler named none.
    pub errors: Vec<Diagnostic>,
    /// The whole log, shown where it holds no error with a line.
    pub log: String,
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line of the text, from 1.
    pub line: usize,
    /// Where the text says the line comes from (`#line`), such as `Paper3k:12`.
    pub declared: Option<String>,
    /// The compiler's words.
    pub message: String,
    /// Number and text of the line and of those around it.
    pub context: Vec<(usize, String)>,
}

impl Diagnostics {
    /// Reads a log whose line numbers count the lines of `text`.
    pub(super) fn read(log: &str, text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let errors = log.lines().filter_map(|line| Diagnostic::read(line, &lines)).collect();
        Self { errors, log: log.trim_end().to_owned() }
    }
}

impl Diagnostic {
    /// Reads `name.cu(12): error: message`, also `… catastrophic error: …`.
    fn read(line: &str, lines: &[&str]) -> Option<Self> {
        let (place, rest) = line.split_once("): ")?;
        let (_, number) = place.rsplit_once('(')?;
        let line: usize = number.parse().ok()?;
        let (severity, message) = rest.split_once(": ")?;
        if !severity.contains("error") {
            return None;
        }
        let first = line.saturating_sub(CONTEXT).max(1);
        let last = (line + CONTEXT).min(lines.len());
        Some(Self {
            line,
            declared: declared_line(lines, line),
            message: message.to_owned(),
            context: (first..=last).map(|number| (number, lines[number - 1].to_owned())).collect(),
        })
    }
}

/// What `#line` makes of a line.
fn declared_line(lines: &[&str], line: usize) -> Option<String> {
    let before = lines.get(..line.checked_sub(1)?)?;
    let (index, directive) =
        before.iter().enumerate().rev().find_map(|(index, text)| Some((index, text.strip_prefix("#line ")?)))?;
    let (number, file) = directive.split_once(' ')?;
    let number: usize = number.parse().ok()?;
    Some(format!("{}:{}", file.trim_matches('"'), number + line - index - 2))
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in self.errors.iter().take(SHOWN) {
            match &error.declared {
                Some(declared) => writeln!(f, "line {} ({declared}): {}", error.line, error.message)?,
                None => writeln!(f, "line {}: {}", error.line, error.message)?,
            }
            for (number, text) in &error.context {
                let mark = if *number == error.line { '>' } else { ' ' };
                writeln!(f, "{mark}{number:5} | {text}")?;
            }
        }
        match self.errors.len() {
            0 => writeln!(f, "{}", self.log),
            errors if errors > SHOWN => writeln!(f, "and {} more errors", errors - SHOWN),
            _ => Ok(()),
        }
    }
}

/// The text with its `#line` directives blanked, so that the compiler counts the lines that are really there.
pub(super) fn without_line_directives(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for line in text.lines() {
        if !line.starts_with("#line ") {
            plain.push_str(line);
        }
        plain.push('\n');
    }
    plain
}
