//! Token ids equal those of Hugging Face's `tokenizers` for the same file.

use ihip_model::tokenizer::Tokenizer;
use ihip_model::weights::Weights;
use ihip_model::{Error, Special};
use ihip_tests::support::gguf::{Meta, tiny, tiny_llama};
use ihip_tests::support::model::{book, read_fixture, smollm2};
use proptest::prelude::*;
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The fixture was written by the Python package `tokenizers` 0.23.3 (regular expressions by Oniguruma) from the
/// vocabulary, merges and control tokens of the default model's file.
#[test]
fn tricky_strings_encode_as_in_hugging_face() {
    let tokenizer = smollm2().tokenizer().unwrap();
    let cases: Vec<Value> = serde_json::from_str(&read_fixture("tokenizer/smollm2.json")).unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        for (key, special) in [("parse", Special::Parse), ("plain_text", Special::PlainText)] {
            assert_eq!(tokenizer.encode(text, special).unwrap(), ids(&case[key]), "{key} {text:?}");
        }
    }
}

#[test]
fn prompts_texts_and_book_equal_the_reference() {
    let tokenizer = smollm2().tokenizer().unwrap();
    let reference: Value = serde_json::from_str(&read_fixture("golden/smollm2_reference.json")).unwrap();
    for case in reference["greedy"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt, Special::Parse).unwrap(), ids(&case["prompt_ids"]));
        assert_eq!(tokenizer.decode(&ids(&case["greedy_ids"])).unwrap(), case["greedy_text"].as_str().unwrap());
    }
    let start: String = book().chars().take(40_000).collect();
    let encoded = tokenizer.encode(&start, Special::Parse).unwrap();
    assert_eq!(encoded[..64], ids(&reference["first_64_ids_of_pride_and_prejudice"]));
    assert_eq!(encoded.len() as u64, reference["tokens_in_first_40000_characters"].as_u64().unwrap());
    assert_eq!(tokenizer.decode(&encoded).unwrap(), start);
}

/// A long text is encoded in segments; one word at a time gives the same.
#[test]
fn segments_do_not_show() {
    let tokenizer = smollm2().tokenizer().unwrap();
    let text = book();
    let whole = tokenizer.encode(&text, Special::Parse).unwrap();
    let lines = text.split_inclusive(". ").map(|sentence| {
        // The space belongs to the next word.
        sentence.strip_suffix(' ').map_or((sentence, ""), |sentence| (sentence, " "))
    });
    let mut carried = String::new();
    let mut parts = Vec::new();
    for (sentence, space) in lines {
        carried.push_str(sentence);
        parts.extend(tokenizer.encode(&carried, Special::Parse).unwrap());
        carried = space.into();
    }
    parts.extend(tokenizer.encode(&carried, Special::Parse).unwrap());
    assert_eq!(whole, parts);
}

/// Words without end, which nothing can cut, still take no more than seconds.
#[test]
fn monotonous_text_is_encoded_whole() {
    let tokenizer = smollm2().tokenizer().unwrap();
    for text in [" ".repeat(1 << 20) + "x", "\n".repeat(1 << 20), "x".repeat(1 << 20), "日本語。".repeat(1 << 16)] {
        let ids = tokenizer.encode(&text, Special::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn words_may_reach_over_the_seams_of_parts() {
    let tokenizer = smollm2().tokenizer().unwrap();
    let parts = [("He said <|im_", Special::Parse), ("end|> hel", Special::PlainText), ("lo", Special::Parse)];
    let joined = tokenizer.encode("He said <|im_end|> hello", Special::PlainText).unwrap();
    assert_eq!(tokenizer.encode_parts(&parts).unwrap(), joined);
    assert_eq!(tokenizer.encode_parts(&[]).unwrap(), [] as [u32; 0]);
}

fn tiny_tokenizer(change: impl FnOnce(&mut ihip_tests::support::gguf::Builder)) -> Tokenizer {
    let mut file = tiny_llama();
    change(&mut file);
    let weights = Weights::parse(file.build().bytes).unwrap();
    Tokenizer::read(weights.file(), weights.config().vocabulary).unwrap()
}

#[test]
fn user_defined_tokens_count_in_any_text() {
    let tokenizer = tiny_tokenizer(|file| {
        let types = (0..tiny::VOCABULARY).map(|id| [4, 3, 3].get(id).copied().unwrap_or(1)).collect();
        file.set("tokenizer.ggml.token_type", Meta::Integers(types));
    });
    let text = "<|endoftext|><|im_end|>";
    assert_eq!(tokenizer.encode(text, Special::Parse).unwrap(), [0, 2]);
    let plain = tokenizer.encode(text, Special::PlainText).unwrap();
    assert_eq!(plain[0], 0);
    // One for each character, but for "nd".
    assert_eq!(plain.len(), "<|im_end|>".len());
    assert!(plain[1..].iter().all(|id| *id >= tiny::CONTROL.len() as u32));
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
}

#[test]
fn end_tokens_are_those_that_the_file_names() {
    let plain = tiny_tokenizer(|_| {});
    assert_eq!((0..5).map(|id| plain.is_end(id)).collect::<Vec<_>>(), [false, false, true, false, false]);
    let more = tiny_tokenizer(|file| {
        file.set("tokenizer.ggml.eot_token_id", Meta::U32(0));
    });
    assert!(more.is_end(0) && more.is_end(2) && !more.is_end(1));
}

#[test]
fn an_id_beyond_the_vocabulary_is_named() {
    let tokenizer = tiny_tokenizer(|_| {});
    let error = tokenizer.decode(&[0, tiny::VOCABULARY as u32]).unwrap_err();
    assert!(matches!(error, Error::UnknownToken { id: 271, vocabulary: 271 }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The tiny vocabulary has every byte, so that nothing is lost under any splitting rule.
    #[test]
    fn decoding_undoes_encoding(
        pieces in prop::collection::vec(
            prop_oneof![
                any::<String>(),
                "[ \t\r\n]{0,4}",
                prop::sample::select(vec!["<|im_end|>", "<|im_", "'s", "123", "The hand and the inn", "é", "。", "🙂"])
                    .prop_map(str::to_owned),
            ],
            0..8,
        ),
        rule in prop::sample::select(vec!["smollm", "gpt-2", "llama-bpe", "default"]),
    ) {
        let tokenizer = tiny_tokenizer(|file| { file.set("tokenizer.ggml.pre", rule); });
        let text = pieces.concat();
        for special in [Special::Parse, Special::PlainText] {
            let ids = tokenizer.encode(&text, special).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &text);
            if special == Special::PlainText {
                prop_assert!(ids.iter().all(|id| *id >= tiny::CONTROL.len() as u32));
            }
        }
    }
}
