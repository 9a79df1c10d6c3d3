//! Finding the library.

use ihip_runtime::jit::{JitError, Nvrtc};
use ihip_tests::support::nvrtc::nvrtc;

#[test]
fn a_missing_library_says_what_was_looked_for_and_where() {
    let empty = tempfile::tempdir().unwrap();
    let error = Nvrtc::open(empty.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "NVRTC is missing: none of libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so is in {}; install CUDA 12 or 13 \
             or `pip install nvidia-cuda-nvrtc`, or set IHIP_NVRTC to the library or its folder",
            empty.path().display()
        )
    );
}

#[test]
fn a_file_that_is_no_library_is_named_with_the_loaders_words() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libnvrtc.so.13");
    std::fs::write(&file, "not a library").unwrap();
    let error = Nvrtc::open(&file).unwrap_err();
    assert!(matches!(error, JitError::LibraryUnusable { .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("{} is no usable NVRTC (", file.display())), "{error}");
}

#[test]
fn the_library_compiles_for_every_tested_architecture() {
    let (major, _) = nvrtc().version();
    assert!(major >= 12, "{:?}", nvrtc().version());
    for architecture in ihip_runtime::jit::Architecture::TESTED {
        assert!(nvrtc().architectures().contains(&architecture), "{:?}", nvrtc().architectures());
    }
}
