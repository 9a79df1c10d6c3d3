//! `ihip tokenize`.

use proptest::prelude::*;

use tempfile::TempDir;

use super::{endless, file_in, ihip, ihip_reading};

fn tokenize(text: &str) -> String {
    ihip_reading(&["tokenize", "--model", endless()], text).text()
}

fn decode(ids: &str) -> String {
    ihip_reading(&["tokenize", "--decode", "--model", endless()], ids).text()
}

#[test]
fn ids_are_separated_by_spaces_and_special_tokens_are_parsed() {
    // "an" is a merge; a special token that is cut short is text.
    insta::assert_snapshot!(tokenize("an<|im_end|>an<|im_end"), @"263 2 263 30 94 75 79 65 71 267");
    assert_eq!(tokenize(""), "\n");
}

#[test]
fn a_text_comes_from_an_argument_or_a_file_as_well() {
    let folder = TempDir::new().unwrap();
    let run = |more: &[&str]| ihip(&[&["tokenize", "--model", endless()], more].concat()).text();
    assert_eq!(run(&["--prompt", "an apple"]), tokenize("an apple"));
    assert_eq!(run(&["--prompt-file", &file_in(&folder, "apple.txt", "an apple")]), tokenize("an apple"));
    assert_eq!(run(&["--decode", "--prompt", &tokenize("an apple")]), "an apple");
    assert_eq!(run(&["--prompt", ""]), "\n");
}

proptest! {
    // Every case starts two programs.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn decoding_gives_the_text_back(text in "(\\PC|[ \n\t]|<\\|im_end\\|>|é|語|🙂){0,40}") {
        prop_assert_eq!(decode(&tokenize(&text)), text);
    }
}
