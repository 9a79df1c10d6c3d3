//! Descriptions by way of the language, so that whatever is tested has passed its grammar and its rules.

use ihip_dsl::{LayerPruning, Pipeline, Refresh};

/// The pipeline that does `pruning` in every layer: written out, parsed and checked.
///
/// # Panics
/// Where the language refuses it, with its messages, or understands something else.
#[must_use]
pub fn declare(name: &str, pruning: &LayerPruning) -> Pipeline {
    let (name, phases) = (name.to_owned().into(), pruning.clone().into());
    let written = Pipeline::from_checked(name, "".into(), Refresh::Together, phases, Vec::new().into());
    let text = written.to_string();
    let pipelines = ihip_dsl::parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
    let [pipeline] = <[Pipeline; 1]>::try_from(pipelines).expect("one declaration");
    assert_eq!(pipeline, written, "as declared by\n{text}");
    pipeline
}
