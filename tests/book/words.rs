//! A page a word, and no page for what is none.

use std::collections::{BTreeMap, BTreeSet};

use ihip_dsl::words::{Place, Takes, Word};

use super::blocks::pages;

const PLACES: [Place; 4] = [Place::Pipeline, Place::Stage, Place::Attend, Place::Rope];

/// Pages of words, by word.
fn word_pages() -> BTreeMap<String, String> {
    let word = |page: &str| Some(page.strip_prefix("docs/src/words/")?.strip_suffix(".md")?.to_owned());
    pages().into_iter().filter_map(|(page, text)| Some((word(&page).filter(|word| word != "README")?, text))).collect()
}

/// Every word of the language, place by place. `layers`, `prefill` and `decode` have those of the pipeline.
fn words() -> impl Iterator<Item = (Place, &'static Word)> {
    PLACES.into_iter().flat_map(|place| place.words().iter().map(move |word| (place, word)))
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
    for (_, word) in words() {
        let of_word = known.entry(word.name).or_default();
        if let Takes::Mode(modes) = word.takes {
            of_word.extend(modes.iter().map(|mode| (*mode).to_owned()));
        }
    }
    for (word, page) in word_pages() {
        let heading = |line: &str| Some(line.strip_prefix("### `")?.strip_suffix('`')?.to_owned());
        let headings: BTreeSet<_> = page.lines().filter_map(heading).collect();
        assert_eq!(headings, known[word.as_str()], "headings of `{word}`");
    }
}

#[test]
fn one_table_has_every_word_with_what_it_takes() {
    let pages = pages();
    let (_, table) = pages.iter().find(|(page, _)| page == "docs/src/words/README.md").expect("the page is there");
    let row = |(place, word): (Place, &Word)| {
        let takes = match word.takes {
            Takes::Number { least, most } => format!("{} to {}", grouped(least), grouped(most)),
            Takes::Mode(modes) => modes.iter().map(|mode| format!("`{mode}`")).collect::<Vec<_>>().join(", "),
            Takes::Nothing => String::new(),
            Takes::Block(_) => "braces".to_owned(),
            Takes::Layers(_) => "layers and braces".to_owned(),
        };
        format!("| {place} | [`{0}`]({0}.md) | {takes} |", word.name)
    };
    let rows: Vec<_> = words().map(row).collect();
    let listed: Vec<_> =
        table.lines().filter(|line| line.contains("](")).filter(|line| line.starts_with('|')).collect();
    assert_eq!(listed.join("\n"), rows.join("\n"));
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
