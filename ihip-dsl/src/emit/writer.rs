//! Lays out a translation unit: heading, prelude, constants, functions, entry point.

use std::fmt::{Display, Write as _};

/// The primitives that kernels are written in; the host has a second body for each.
const PRELUDE: &str = include_str!("prelude.cu");

/// Text of one translation unit, in the order in which it is read.
pub(crate) struct Writer {
    text: String,
    constants: Vec<(&'static str, String, String)>,
}

impl Writer {
    /// Starts a unit. `heading` says what the kernel does, a sentence a line; `origin` names what was declared
    /// (pipeline and stage), and compilers report it in place of a file.
    pub(crate) fn new(heading: &str, origin: &str) -> Self {
        let mut text = String::new();
        for line in heading.lines() {
            let _ = writeln!(text, "// {line}");
        }
        let _ = write!(text, "\n#line 1 \"prelude.cu\"\n{PRELUDE}\n#line 1 \"{origin}\"\n");
        Self { text, constants: Vec::new() }
    }

    /// Adds an integer constant and what it means. Constants come out as one aligned block.
    pub(crate) fn constant(
        &mut self,
        name: &'static str,
        value: impl Display,
        meaning: impl Into<String>,
    ) -> &mut Self {
        self.constants.push((name, format!("constexpr int {name} = {value};"), meaning.into()));
        self
    }

    /// Adds a constant of type float, written with every digit that tells it from its neighbours.
    pub(crate) fn float(&mut self, name: &'static str, value: f32, meaning: impl Into<String>) -> &mut Self {
        self.constants.push((name, format!("constexpr float {name} = {value:?}f;"), meaning.into()));
        self
    }

    /// Adds a piece of text after the constants collected so far.
    pub(crate) fn text(&mut self, piece: &str) -> &mut Self {
        self.flush();
        self.text.push('\n');
        self.text.push_str(piece.trim_matches('\n'));
        self.text.push('\n');
        self
    }

    /// Adds a piece of text right below the one before, without a blank line.
    pub(crate) fn more(&mut self, piece: &str) -> &mut Self {
        self.text.push_str(piece.trim_matches('\n'));
        self.text.push('\n');
        self
    }

    fn flush(&mut self) {
        if self.constants.is_empty() {
            return;
        }
        let width = self.constants.iter().map(|(_, code, _)| code.len()).max().unwrap_or(0);
        self.text.push('\n');
        for (_, code, meaning) in self.constants.drain(..) {
            let _ = writeln!(self.text, "{code:width$}  // {meaning}");
        }
    }

    /// The whole text.
    pub(crate) fn finish(mut self) -> String {
        self.flush();
        self.text
    }
}

/// `text` with `spaces` more in front of each line but those for the preprocessor.
pub(super) fn indented(text: &str, spaces: usize) -> String {
    let line = |line: &str| match line.chars().next() {
        None | Some('#') => format!("{line}\n"),
        Some(_) => format!("{:spaces$}{line}\n", ""),
    };
    text.trim_matches('\n').lines().map(line).collect()
}

/// `Paper3k` and `MyFastOne` as parts of a kernel's name: `paper3k`, `my_fast_one`.
#[must_use]
pub fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut before = '_';
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && before != '_' && !before.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' });
        before = letter;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::snake_case;

    #[test]
    fn pipeline_names_become_snake_case() {
        assert_eq!(snake_case("Paper3k"), "paper3k");
        assert_eq!(snake_case("Paper3kFast"), "paper3k_fast");
        assert_eq!(snake_case("MyFastOne"), "my_fast_one");
        assert_eq!(snake_case("StreamingLLM"), "streaming_llm");
        assert_eq!(snake_case("a-b"), "a_b");
    }
}
