//! The default model, fetched into the cache where it is not there yet.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ihip_model::{ModelFile, fetch};

/// SmolLM2-135M-Instruct, opened once for all tests.
///
/// # Panics
/// With the reason when the model is neither in the cache nor can be fetched.
pub fn smollm2() -> &'static ModelFile {
    static MODEL: OnceLock<ModelFile> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = fetch::model_path(fetch::SMOLLM2.name, &mut |_| ControlFlow::Continue(()));
        let model = path.and_then(ModelFile::open);
        model.unwrap_or_else(|error| panic!("the tests need the default model: {error}"))
    })
}

/// A book in the public domain: Pride and Prejudice.
///
/// # Panics
/// When the fixture is not there.
#[must_use]
pub fn book() -> String {
    read_fixture("texts/pride_and_prejudice.txt")
}

/// A path in `tests/fixtures`.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A text of `tests/fixtures`.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn read_fixture(name: &str) -> String {
    let path = fixture(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
