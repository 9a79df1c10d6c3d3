//! Descriptions by way of the language, so that whatever is tested has passed its grammar and its rules.

use ihip_dsl::{LayerPruning, Pipeline};

/// The pipeline that does `pruning` in every layer: written out, parsed and checked.
///
/// # Panics
/// Where the language refuses it, with its messages, or understands something else.
#[must_use]
pub fn declare(name: &str, pruning: &LayerPruning) -> Pipeline {
    let written = Pipeline::from_checked(name.to_owned().into(), "".into(), pruning.clone(), Vec::new().into());
    let text = written.to_string();
    let pipelines = ihip_dsl::parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
    let [pipeline] = <[Pipeline; 1]>::try_from(pipelines).expect("one declaration");
    assert_eq!(pipeline, written, "as declared by\n{text}");
    pipeline
}
