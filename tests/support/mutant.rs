//! Mistakes put into kernels on purpose, one at a time: tests that let one pass would let it pass in earnest.
//!
//! A mutant is an entry of `tests/mutants/*.toml`. It is in force where `IHIP_TEST_MUTANT` names it; then the emulator
//! compiles the changed text in place of the generated one.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde::Deserialize;

/// Names the mutant in force.
pub const VARIABLE: &str = "IHIP_TEST_MUTANT";

/// A substitution on the text of kernels.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// The mistake, in a sentence.
    pub name: String,
    /// Part of the names of the kernels that make it.
    pub kernel: String,
    /// What stands in their text, exactly once in each that has it.
    pub replace: String,
    /// What stands there instead.
    pub with: String,
    /// Filter of the tests that are expected to notice.
    pub tests: String,
    /// The file it comes from.
    #[serde(skip)]
    pub file: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mutant: Vec<Mutant>,
}

/// What a mutant does to a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: the kernel is not meant, or does not say that.
    Not,
    /// The changed text.
    Changed(String),
    /// The text says it this many times, so that it is not clear which is meant.
    Unclear(usize),
}

impl Mutant {
    /// Makes the mistake in the text of a kernel.
    #[must_use]
    pub fn apply(&self, kernel: &str, text: &str) -> Applied {
        if !kernel.contains(&self.kernel) {
            return Applied::Not;
        }
        match text.matches(&self.replace).count() {
            0 => Applied::Not,
            1 => Applied::Changed(text.replacen(&self.replace, &self.with, 1)),
            times => Applied::Unclear(times),
        }
    }
}

/// Every mutant, by file and in the order of the file.
///
/// # Panics
/// Where a file is no list of mutants.
#[must_use]
pub fn all() -> Vec<Mutant> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/mutants"));
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let read = |path: &PathBuf| {
        let file = format!("tests/mutants/{}", path.file_name().expect("a file of the folder").display());
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let File { mutant } = toml::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        mutant.into_iter().map(move |mutant| Mutant { file: file.clone(), ..mutant })
    };
    files.iter().flat_map(read).collect()
}

/// The text of a kernel as the mutant in force leaves it.
pub(super) fn text(kernel: &str, text: &str) -> String {
    static IN_FORCE: LazyLock<Option<Mutant>> = LazyLock::new(|| {
        let name = std::env::var(VARIABLE).ok()?;
        let mutant = all().into_iter().find(|mutant| mutant.name == name);
        Some(mutant.unwrap_or_else(|| panic!("{VARIABLE} is {name:?}, and tests/mutants has no mutant of that name")))
    });
    match IN_FORCE.as_ref().map(|mutant| mutant.apply(kernel, text)) {
        Some(Applied::Changed(changed)) => changed,
        _ => text.to_owned(),
    }
}
