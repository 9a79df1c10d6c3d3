//! The pipelines that are linked into this program, by name.

use ihip_dsl::{Declared, Pipeline, Pruning};
use thiserror::Error;

/// A pipeline that `pruning!` registered.
#[derive(Debug)]
pub struct Entry {
    pipeline: fn() -> &'static Pipeline,
    declared: &'static Declared,
    module: &'static str,
}

inventory::collect!(Entry);

impl Entry {
    /// For the expansion of `pruning!`: `P`, declared in `module`.
    #[doc(hidden)]
    #[must_use]
    pub const fn new<P: Pruning>(module: &'static str) -> Self {
        Self { pipeline: P::pipeline, declared: P::DECLARED, module }
    }
}

/// Two pipelines of one name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("two pipelines are called {name}, one in {first} and one in {second}: rename one of them")]
pub struct DuplicateName {
    /// The name.
    pub name: &'static str,
    /// Module of the one.
    pub first: &'static str,
    /// Module of the other.
    pub second: &'static str,
}

/// Every pipeline, sorted by name.
#[must_use]
pub fn all() -> Vec<&'static Pipeline> {
    entries().into_iter().map(|entry| (entry.pipeline)()).collect()
}

/// The pipeline called `name`, letter for letter.
#[must_use]
pub fn find(name: &str) -> Option<&'static Pipeline> {
    all().into_iter().find(|pipeline| pipeline.name() == name)
}

/// Every pipeline as it was declared, by its name: what a text may inherit from.
#[must_use]
pub fn declared() -> Vec<(&'static str, &'static Declared)> {
    entries().into_iter().map(|entry| ((entry.pipeline)().name(), entry.declared)).collect()
}

/// The name of every pipeline, sorted.
pub(crate) fn names() -> Vec<&'static str> {
    all().into_iter().map(Pipeline::name).collect()
}

/// Names that `name` may have been meant to be, the nearest first, case aside.
#[must_use]
pub fn nearest(name: &str) -> Vec<&'static str> {
    similar(name, names())
}

/// Those of `names` that `name` may have been meant to be, the nearest first, case aside.
pub(crate) fn similar(name: &str, names: Vec<&'static str>) -> Vec<&'static str> {
    /// Below this similarity (Jaro-Winkler, 1 for equal) a suggestion helps nobody.
    const SIMILAR: f64 = 0.75;
    let name = name.to_lowercase();
    let mut names: Vec<_> = names
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&name, &known.to_lowercase()), known))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    names.into_iter().map(|(_, name)| name).collect()
}

/// Checks that every name stands for one pipeline.
///
/// # Errors
/// [`DuplicateName`] names the first two that share one.
pub fn verify() -> Result<(), DuplicateName> {
    distinct(&entries())
}

fn entries() -> Vec<&'static Entry> {
    let mut entries: Vec<_> = inventory::iter::<Entry>.into_iter().collect();
    entries.sort_by_key(|entry| ((entry.pipeline)().name(), entry.module));
    entries
}

fn distinct(sorted: &[&Entry]) -> Result<(), DuplicateName> {
    for pair in sorted.windows(2) {
        let (name, next) = ((pair[0].pipeline)().name(), (pair[1].pipeline)().name());
        if name == next {
            return Err(DuplicateName { name, first: pair[0].module, second: pair[1].module });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DuplicateName, Entry, all, distinct, find, nearest, verify};
    use crate::presets::{Paper3k, Paper5k};

    #[test]
    fn presets_are_registered_under_their_names() {
        let names: Vec<_> = all().into_iter().map(ihip_dsl::Pipeline::name).collect();
        let names = names.join(" ");
        assert_eq!(
            names,
            "BoundThenExact Hip InfLlm MobaLike Paper3k Paper3kFast Paper3kFlash Paper3kStaggered Paper5k Quest StreamingLlm"
        );
        assert_eq!(verify(), Ok(()));
        assert_eq!(find("Paper5k").map(ihip_dsl::Pipeline::name), Some("Paper5k"));
    }

    #[test]
    fn a_name_is_found_letter_for_letter_and_suggested_whatever_its_case() {
        assert_eq!(find("paper3k"), None);
        assert_eq!(nearest("paper3k").first(), Some(&"Paper3k"));
        assert_eq!(nearest("PAPER3KFALSH").first(), Some(&"Paper3kFlash"));
        assert_eq!(nearest("xyz"), Vec::<&str>::new());
    }

    #[test]
    fn two_pipelines_of_one_name_are_told_apart_by_their_modules() {
        let entries = [Entry::new::<Paper3k>("one"), Entry::new::<Paper3k>("two"), Entry::new::<Paper5k>("two")];
        let error = distinct(&entries.iter().collect::<Vec<_>>()).unwrap_err();
        assert_eq!(error, DuplicateName { name: "Paper3k", first: "one", second: "two" });
        assert_eq!(
            error.to_string(),
            "two pipelines are called Paper3k, one in one and one in two: rename one of them"
        );
    }
}
