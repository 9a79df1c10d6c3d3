//! How a text is split into words before merging, by the name in `tokenizer.ggml.pre`.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::weights::{Malformed, Result};

/// A way of splitting.
pub(super) struct Words {
    pub(super) splitters: Sequence,
    /// Whether a word that is a token is taken as it is, whatever merging would give.
    pub(super) whole_words_first: bool,
}

/// Rules by the names that converters write. Each is a list of expressions; one splits what the one before left.
const RULES: [(&[&str], Rule); 4] = [
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        Rule::SingleDigits,
    ),
    (
        &[
            "gpt-2",
            "gpt2",
            "mpt",
            "olmo",
            "jais",
            "phi-2",
            "trillion",
            "granite-docling",
        ],
        Rule::Gpt2,
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "pixtral",
            "smaug-bpe",
        ],
        Rule::Llama3,
    ),
    (&["default"], Rule::Default),
];

#[derive(Clone, Copy)]
enum Rule {
    SingleDigits,
    Gpt2,
    Llama3,
    Default,
}

/// Llama 3's expression: digits in threes, line ends with the punctuation before them.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What llama.cpp does for files that name no rule: punctuation apart, then GPT-2's expression, then digits.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

impl Words {
    pub(super) fn named(name: &str) -> Result<Self> {
        let rule = RULES
            .iter()
            .find(|(names, _)| names.contains(&name))
            .map(|(_, rule)| *rule);
        let rule = rule.ok_or_else(|| {
            let known: Vec<&str> = RULES
                .iter()
                .flat_map(|(names, _)| *names)
                .copied()
                .collect();
            Malformed::PreTokenizer {
                name: name.into(),
                known: known.join(", "),
            }
        })?;
        let splitters = match rule {
            Rule::SingleDigits => vec![Digits::new(true).into(), bytes(true)],
            Rule::Gpt2 => vec![bytes(true)],
            Rule::Llama3 => vec![split(LLAMA3), bytes(false)],
            Rule::Default => DEFAULT
                .into_iter()
                .map(split)
                .chain([bytes(false)])
                .collect(),
        };
        Ok(Self {
            splitters: Sequence::new(splitters),
            whole_words_first: matches!(rule, Rule::Llama3),
        })
    }
}

/// Writes every byte as the character that stands for it, after GPT-2's expression where asked for.
fn bytes(gpt2_words: bool) -> PreTokenizerWrapper {
    ByteLevel::new(false, false, gpt2_words).into()
}

fn split(expression: &str) -> PreTokenizerWrapper {
    let pattern = SplitPattern::Regex(expression.into());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .expect("the expressions above compile")
        .into()
}

#[cfg(test)]
mod tests {
    use super::{RULES, Words};

    #[test]
    fn every_known_rule_compiles_and_others_are_refused_by_name() {
        for name in RULES.iter().flat_map(|(names, _)| *names) {
            assert!(Words::named(name).is_ok());
        }
        let message = Words::named("tekken").map(|_| ()).unwrap_err().to_string();
        assert!(
            message.contains("\"tekken\"") && message.contains("smollm"),
            "{message}"
        );
    }
}
