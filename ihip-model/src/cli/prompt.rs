//! Where a text comes from: an argument, a file or standard input.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::{Error, Result};

/// The text; standard input where neither is given.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct Prompt {
    /// The text itself
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the text; without this and --prompt it is read from standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
}

/// Where a text came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `--prompt`.
    Argument,
    /// `--prompt-file`.
    File(PathBuf),
    /// Standard input.
    StandardInput,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument => formatter.write_str("--prompt"),
            Self::File(path) => path.display().fmt(formatter),
            Self::StandardInput => formatter.write_str("standard input"),
        }
    }
}

impl Prompt {
    /// Where the text comes from.
    pub(super) fn source(&self) -> Source {
        match (&self.prompt, &self.prompt_file) {
            (Some(_), _) => Source::Argument,
            (None, Some(path)) => Source::File(path.clone()),
            (None, None) => Source::StandardInput,
        }
    }

    /// The text, at least one character of it.
    ///
    /// # Errors
    /// Where it cannot be read, is empty, or is not UTF-8.
    pub(super) fn read(&self) -> Result<String> {
        let text = self.text()?;
        if text.is_empty() { Err(Error::EmptyPrompt { input: self.source() }) } else { Ok(text) }
    }

    /// The text, perhaps none.
    ///
    /// # Errors
    /// Where it cannot be read or is not UTF-8.
    pub(super) fn text(&self) -> Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) => read_file(path),
            (None, None) => read_standard_input(),
        }
    }
}

/// All of standard input as text, perhaps none.
///
/// # Errors
/// Where it cannot be read or is not UTF-8.
fn read_standard_input() -> Result<String> {
    let mut input = io::stdin().lock();
    if input.is_terminal() {
        let _ = writeln!(io::stderr(), "Reading standard input; end it with Ctrl-D.");
    }
    read_text(&mut input, Source::StandardInput)
}

/// All of a file as text, perhaps none.
///
/// # Errors
/// Where it cannot be read or is not UTF-8.
pub(super) fn read_file(path: &Path) -> Result<String> {
    let input = Source::File(path.into());
    match File::open(path) {
        Ok(mut file) => read_text(&mut file, input),
        Err(source) => Err(Error::ReadPrompt { input, source }),
    }
}

fn read_text(reader: &mut dyn Read, input: Source) -> Result<String> {
    let mut bytes = Vec::new();
    if let Err(source) = reader.read_to_end(&mut bytes) {
        return Err(match source.kind() {
            io::ErrorKind::IsADirectory => Error::PromptIsDirectory { input },
            _ => Error::ReadPrompt { input, source },
        });
    }
    String::from_utf8(bytes).map_err(|error| Error::NotUtf8 { input, offset: error.utf8_error().valid_up_to() })
}
