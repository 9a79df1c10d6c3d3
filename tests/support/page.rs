//! Tables of docs/src/proof.md that are made of rows which runs of the tests have left.

use std::sync::{Mutex, PoisonError};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/proof.md");

/// One table at a time is looked up and written.
static TURN: Mutex<()> = Mutex::new(());

/// The page has the table as it is here; with `INSTA_UPDATE=always` it has so afterwards. The first line of a table is
/// what it is found by.
///
/// # Panics
/// Where it has not.
pub fn assert_table(table: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let text = std::fs::read_to_string(PAGE).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    let header = table.lines().next().unwrap_or_default();
    let start = text.find(header).unwrap_or_else(|| panic!("{PAGE} has no table that begins with {header}"));
    let length = text[start..].find("\n\n").map_or(text.len() - start, |length| length + 1);
    if text[start..start + length] == *table {
        return;
    }
    let update = std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always");
    assert!(update, "{PAGE} has other rows than tests/fixtures/proof; INSTA_UPDATE=always writes them:\n{header}");
    let made = format!("{}{table}{}", &text[..start], &text[start + length..]);
    std::fs::write(PAGE, made).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
}
