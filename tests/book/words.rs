//! A page a word, and no page for what is none.

use std::collections::{BTreeMap, BTreeSet};

use ihip_dsl::words::{Place, Takes, Word};
use ihip_dsl::{Rule, parse_str};

use super::blocks::pages;

const PLACES: [Place; 5] = [Place::Pipeline, Place::Layers, Place::Stage, Place::Attend, Place::Rope];

/// Pages of words, by word.
fn word_pages() -> BTreeMap<String, String> {
    let word = |page: &str| Some(page.strip_prefix("docs/src/words/")?.strip_suffix(".md")?.to_owned());
    pages().into_iter().filter_map(|(page, text)| Some((word(&page).filter(|word| word != "README")?, text))).collect()
}

/// Every word of the language, place by place.
fn words() -> impl Iterator<Item = (Place, &'static Word)> {
    PLACES.into_iter().flat_map(|place| place.words().iter().map(move |word| (place, word)))
}

/// The modes of a word, as the message for one that is none lists them.
fn modes(place: Place, word: &str) -> Vec<&'static str> {
    let wrong = match place {
        Place::Pipeline | Place::Layers => format!("A {{ {word} zzzzzzzz; }}"),
        Place::Stage => format!("A {{ stage {{ {word} zzzzzzzz }} }}"),
        Place::Attend => format!("A {{ attend {{ {word} zzzzzzzz }} }}"),
        Place::Rope => format!("A {{ rope {{ {word} zzzzzzzz }} }}"),
    };
    let errors = parse_str(&wrong).expect_err("no mode is called zzzzzzzz");
    let known = errors.iter().find_map(|error| match &error.rule {
        Rule::UnknownMode { known, .. } => Some(known.clone()),
        _ => None,
    });
    known.unwrap_or_else(|| panic!("`{word}` takes a mode"))
}

/// `16777216` as `16,777,216`.
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

#[test]
fn every_word_has_a_page_and_every_page_a_word() {
    let words: BTreeSet<_> = words().map(|(_, word)| word.name.to_owned()).collect();
    assert_eq!(word_pages().into_keys().collect::<BTreeSet<_>>(), words);
}

#[test]
fn every_mode_has_a_heading_on_the_page_of_its_word_and_every_heading_a_mode() {
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (place, word) in words() {
        let of_word = known.entry(word.name).or_default();
        if word.takes == Takes::Mode {
            of_word.extend(modes(place, word.name).into_iter().map(str::to_owned));
        }
    }
    for (word, page) in word_pages() {
        let heading = |line: &str| Some(line.strip_prefix("### `")?.strip_suffix('`')?.to_owned());
        let headings: BTreeSet<_> = page.lines().filter_map(heading).collect();
        assert_eq!(headings, known[word.as_str()], "headings of `{word}`");
    }
}

#[test]
fn every_page_has_its_sections_and_says_the_limits() {
    let pages = word_pages();
    for (_, word) in words() {
        let page = &pages[word.name];
        let picture = format!("](../pictures/{}.svg)", word.name);
        let blocks = ["```rust\n", "```toml\n", "```rust,compile_fail\n", "```text\nerror: "];
        let sections = ["Formula", "In Rust and in TOML", "Limits", "Cost", "Good for", "Where it comes from"];
        let sections = sections.map(|section| format!("\n## {section}\n\n"));
        for part in blocks.into_iter().chain(sections.iter().map(String::as_str)).chain([picture.as_str()]) {
            assert!(page.contains(part), "`{}` has no {part}", word.name);
        }
        if let Takes::Number { least, most } = word.takes {
            let limits = format!("{} to {}", grouped(least), grouped(most));
            assert!(page.contains(&limits), "the page of `{}` does not say {limits}", word.name);
        }
    }
}
