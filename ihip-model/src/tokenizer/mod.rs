//! Text to token ids and back: the byte-level BPE of a GGUF file.

mod decoder;
mod segments;
mod words;

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use rayon::prelude::*;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::weights::gguf::Gguf;
use crate::weights::{Malformed, Result as FileResult};
use crate::{Error, Result};

pub use decoder::Decoder;
use segments::segments;

/// What text that looks like a control token, such as `<|im_end|>`, stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The token itself.
    Parse,
    /// The characters it is written with.
    PlainText,
}

/// A byte-level BPE tokenizer. Ids equal those of Hugging Face's `tokenizers` for the same vocabulary, with no token
/// added at either end.
pub struct Tokenizer {
    words: Sequence,
    model: BPE,
    decoder: decoder::Table,
    control: Added,
    user_defined: Added,
    end: Vec<u32>,
    bos: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary())
            .finish_non_exhaustive()
    }
}

/// Tokens that are found in the text before it is split into words.
struct Added {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

impl Added {
    fn new(tokens: &[(&str, u32)]) -> Self {
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(token, _)| token))
            .expect(
                "a vocabulary of a file in memory is far below the 2³¹ states of the automaton",
            );
        Self {
            finder,
            ids: tokens.iter().map(|(_, id)| *id).collect(),
        }
    }

    /// The text between the tokens, and the tokens.
    fn split<'a>(
        &self,
        text: &'a str,
        mut found: impl FnMut(Piece<'a>) -> Result<()>,
    ) -> Result<()> {
        let mut rest = 0;
        for token in self.finder.find_iter(text) {
            found(Piece::Text(&text[rest..token.start()]))?;
            found(Piece::Token(self.ids[token.pattern().as_usize()]))?;
            rest = token.end();
        }
        found(Piece::Text(&text[rest..]))
    }
}

enum Piece<'a> {
    Text(&'a str),
    Token(u32),
}

/// ggml's kinds of token that matter here; all others are matched by merging alone.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const WORDS: &str = "tokenizer.ggml.pre";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const END: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];

impl Tokenizer {
    /// The tokenizer of a file whose model has `vocabulary` tokens.
    ///
    /// # Errors
    /// [`Malformed`] with what is missing, damaged or not implemented.
    pub fn read<B: AsRef<[u8]>>(file: &Gguf<B>, vocabulary: usize) -> FileResult<Self> {
        let missing = |key: &str| Malformed::MissingKey { key: key.into() };
        let model = file.string(MODEL)?.ok_or_else(|| missing(MODEL))?;
        if model != "gpt2" {
            return Err(Malformed::TokenizerModel {
                model: model.into(),
            });
        }
        let words = words::Words::named(file.string(WORDS)?.unwrap_or("default"))?;
        let tokens = file.strings(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
        let count = |what, found| {
            if found == vocabulary {
                Ok(())
            } else {
                Err(Malformed::Vocabulary {
                    what,
                    found,
                    vocabulary,
                })
            }
        };
        count("list of tokens", tokens.len())?;
        let types: Vec<i32> = match file.integers(TOKEN_TYPES)? {
            Some(types) => types.collect(),
            None => vec![1; vocabulary],
        };
        count("list of token types", types.len())?;

        let mut ids = HashMap::with_capacity(vocabulary);
        let mut decoder = decoder::Table::default();
        let (mut control, mut user_defined) = (Vec::new(), Vec::new());
        for ((id, token), kind) in (0_u32..).zip(tokens).zip(types) {
            if let Some(first) = ids.insert(token, id) {
                return Err(Malformed::DuplicateToken {
                    token: token.into(),
                    first,
                    second: id,
                });
            }
            match kind {
                CONTROL | USER_DEFINED if token.is_empty() => decoder.push_text(token),
                CONTROL => {
                    control.push((token, id));
                    decoder.push_text(token);
                }
                USER_DEFINED => {
                    user_defined.push((token, id));
                    decoder.push_text(token);
                }
                _ => decoder.push_byte_level(token),
            }
        }
        let model = merges(file, &ids, words.whole_words_first)?;

        let id = |key: &'static str| match file.unsigned(key)? {
            Some(id) if id >= vocabulary => Err(Malformed::TokenId {
                key,
                id,
                vocabulary,
            }),
            id => Ok(id.map(|id| id as u32)),
        };
        let mut end = Vec::new();
        for key in END {
            end.extend(id(key)?);
        }
        // A user-defined token counts in any text; a control token only where it is asked for.
        control.extend(&user_defined);
        Ok(Self {
            words: words.splitters,
            model,
            decoder,
            control: Added::new(&control),
            user_defined: Added::new(&user_defined),
            end,
            bos: id(BOS)?,
        })
    }

    /// Tokens of the vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.decoder.len()
    }

    /// Whether the token ends a generation.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.end.contains(&id)
    }

    /// The token that the model was trained to see first, if it has one. Nothing here adds it.
    #[must_use]
    pub const fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The text's tokens, none added. Bytes that the vocabulary has no token for are left out, as in Hugging Face's
    /// tokenizers.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        self.encode_parts(&[(text, special)])
    }

    /// The tokens of the parts joined to one text, control tokens being looked for in some parts only. Words may
    /// reach over the seams.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_parts(&self, parts: &[(&str, Special)]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut pending: Vec<&str> = Vec::new();
        for &(text, special) in parts {
            let added = match special {
                Special::Parse => &self.control,
                Special::PlainText => &self.user_defined,
            };
            added.split(text, |piece| {
                match piece {
                    Piece::Text(text) => pending.push(text),
                    Piece::Token(id) => {
                        self.encode_text(&pending, &mut ids)?;
                        pending.clear();
                        ids.push(id);
                    }
                }
                Ok(())
            })?;
        }
        self.encode_text(&pending, &mut ids)?;
        Ok(ids)
    }

    /// The text of the tokens; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut decoder = self.decoder();
        let mut text = String::new();
        for &id in ids {
            text += &decoder.push(id)?;
        }
        text += &decoder.finish();
        Ok(text)
    }

    /// A decoder for tokens that come one by one.
    #[must_use]
    pub const fn decoder(&self) -> Decoder<'_> {
        Decoder::new(&self.decoder)
    }

    fn encode_text(&self, pieces: &[&str], ids: &mut Vec<u32>) -> Result<()> {
        let joined;
        let text = match pieces {
            [text] => text,
            _ => {
                joined = pieces.concat();
                joined.as_str()
            }
        };
        let encoded: Vec<Vec<u32>> = segments(text)
            .par_iter()
            .map(|segment| self.encode_segment(segment))
            .collect::<Result<_>>()?;
        ids.extend(encoded.into_iter().flatten());
        Ok(())
    }

    fn encode_segment(&self, segment: &str) -> Result<Vec<u32>> {
        let fail = |source| Error::Encode { source };
        let mut words = PreTokenizedString::from(segment);
        self.words.pre_tokenize(&mut words).map_err(fail)?;
        let mut ids = Vec::new();
        for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            ids.extend(
                self.model
                    .tokenize(word)
                    .map_err(fail)?
                    .iter()
                    .map(|token| token.id),
            );
        }
        Ok(ids)
    }
}

fn merges<B: AsRef<[u8]>>(
    file: &Gguf<B>,
    ids: &HashMap<&str, u32>,
    whole_words_first: bool,
) -> FileResult<BPE> {
    let merges = file
        .strings(MERGES)?
        .ok_or_else(|| Malformed::MissingKey { key: MERGES.into() })?;
    let merges: Vec<(String, String)> = merges
        .enumerate()
        .map(|(index, merge)| match merge.split_once(' ') {
            Some((left, right))
                if [left, right, &[left, right].concat()]
                    .iter()
                    .all(|token| ids.contains_key(token)) =>
            {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(Malformed::Merge {
                index,
                merge: merge.into(),
            }),
        })
        .collect::<FileResult<_>>()?;
    let vocabulary = ids
        .iter()
        .map(|(token, id)| ((*token).to_owned(), *id))
        .collect();
    let mut model = BPE::new(vocabulary, merges);
    model.ignore_merges = whole_words_first;
    Ok(model)
}
