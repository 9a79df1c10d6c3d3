//! `ihip tokenize`: text to token ids and back.

use clap::Args;

use super::error::{Error, Result};
use super::interrupt;
use super::model::ModelArguments;
use super::output;
use super::prompt::Prompt;
use crate::Special;

/// Prints the token ids of a text, or the text of token ids
///
/// The text is taken as it is: special tokens written in it are parsed, none are added. Ids are
/// separated by spaces.
#[derive(Debug, Args)]
pub(super) struct Tokenize {
    /// From ids to text
    #[arg(long)]
    decode: bool,
    #[command(flatten)]
    prompt: Prompt,
    #[command(flatten)]
    model: ModelArguments,
}

impl Tokenize {
    /// Reads the text, or the ids, and writes the other form of it.
    ///
    /// # Errors
    /// Where input or model cannot be used, or the result cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        let interrupt = interrupt::listen()?;
        let input = self.prompt.text()?;
        if self.decode {
            let ids = input.split_whitespace().map(token_id).collect::<Result<Vec<_>>>()?;
            output::write(&self.model.open(interrupt)?.tokenizer()?.decode(&ids)?)
        } else {
            let ids = self.model.open(interrupt)?.tokenizer()?.encode(&input, Special::Parse)?;
            let words: Vec<String> = ids.iter().map(u32::to_string).collect();
            output::write(&(words.join(" ") + "\n"))
        }
    }
}

fn token_id(word: &str) -> Result<u32> {
    word.parse().map_err(|_| Error::NotATokenId { word: word.chars().take(40).collect() })
}
