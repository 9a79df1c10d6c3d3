//! What is legal but unwise is said, once, where it is declared.

use ihip_dsl::{parse_toml_among, report};
use ihip_model::registry;

/// Warnings about a file with `words` in it.
fn warnings(words: &str) -> String {
    let text = format!("name = \"Mine\"\n{words}");
    let checked =
        parse_toml_among(&text, &registry::declared()).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
    let lines: Vec<_> = checked.warnings.iter().map(|warning| report::warning("mine.toml", warning)).collect();
    lines.join("\n")
}

#[test]
fn a_first_chunk_under_query_block_or_refresh_leaves_keys_uncovered() {
    insta::assert_snapshot!(warnings("inherit = \"Paper3k\"\nstage = [{ chunk = 32, refresh = 96 }]"), @r"
    warning: mine.toml:3:20: the first chunk of 32 is under 63, the query block of 64 less one: up to 31 keys before the window are neither scanned nor seen by the last queries of a block; write `chunk = 64`, or `query_block = 32`
    warning: mine.toml:3:34: the first chunk of 32 is under `refresh = 96`: up to 64 keys that the window has left are not seen until the mask is renewed; write `refresh = 32` or less, or a larger first chunk
    ");
    assert_eq!(warnings("inherit = \"Paper3k\"\nquery_block = 32\nstage = [{ chunk = 32, refresh = 32 }]"), "");
}

#[test]
fn a_cut_above_what_is_left_to_cut_cuts_nothing() {
    insta::assert_snapshot!(warnings("inherit = \"Paper3k\"\nlayers = [{ layers = 40, attend.keep = 16_384 }]"), @"warning: mine.toml:3:40: `keep = 16384` cuts nothing, because 8192 tokens are left to cut: write `keep = 8192` or less, or remove a stage");
}

#[test]
fn a_phase_that_is_dense_and_a_phase_that_has_no_mask_to_renew_are_not_warned_about() {
    let words = "inherit = \"Quest\"\nquery_block = 64\nlayers = [{ layers = 40, dense = true }]";
    assert_eq!(warnings(words), "");
}

#[test]
fn what_a_parent_does_is_told_where_it_is_declared() {
    for parent in registry::all() {
        assert_eq!(warnings(&format!("inherit = \"{}\"", parent.name())), "", "{}", parent.name());
    }
}
