//! `kernels-generated/` is what the emitter writes today, and every file of it compiles.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ihip_dsl::emit::{Activation, Program};
use ihip_dsl::{KvType, Plan};
use ihip_model::gallery::{self, Entry, MANIFEST, Manifest};
use ihip_model::shapes::KnownShape;
use ihip_tests::support::nvrtc::nvrtc;

/// How to bring the folder up to date.
const HINT: &str = "run `cargo run --bin ihip -- kernels gallery` and look at the difference";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels-generated")
}

fn entries() -> Vec<Entry> {
    gallery::entries().expect("every pipeline fits both models")
}

fn kept_manifest() -> Manifest {
    let path = folder().join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; {HINT}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}; {HINT}", path.display()))
}

#[test]
fn every_file_is_what_the_emitter_writes() {
    for entry in entries() {
        let path = folder().join(&entry.file);
        let kept = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; {HINT}", path.display()));
        let differing = kept.lines().zip(entry.kernel.text.lines()).position(|(kept, emitted)| kept != emitted);
        assert_eq!(differing.map(|line| line + 1), None, "{}: first line that differs; {HINT}", entry.file);
        assert_eq!(kept.len(), entry.kernel.text.len(), "{}: bytes; {HINT}", entry.file);
    }
}

#[test]
fn there_is_no_other_file() {
    let mut kept = BTreeSet::new();
    for entry in fs::read_dir(folder()).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            let files = fs::read_dir(&path).expect("it can be listed");
            kept.extend(files.map(|file| file.expect("it can be listed").path()));
        } else {
            kept.insert(path);
        }
    }
    let mut expected: BTreeSet<PathBuf> = entries().iter().map(|entry| folder().join(&entry.file)).collect();
    expected.insert(folder().join(MANIFEST));
    assert_eq!(kept, expected, "{HINT}");
}

#[test]
fn every_file_compiles_for_every_tested_architecture_with_the_resources_of_the_manifest() {
    let kept = kept_manifest();
    let mut made = gallery::manifest(nvrtc(), &entries(), &|_| ()).unwrap_or_else(|error| panic!("{error}"));
    // Another compiler counts registers in its own way; all else must agree.
    if made.nvrtc != kept.nvrtc {
        for (made, kept) in made.kernel.iter_mut().zip(&kept.kernel) {
            assert_eq!(made.resources.keys().collect::<Vec<_>>(), kept.resources.keys().collect::<Vec<_>>());
            made.resources.clone_from(&kept.resources);
        }
        made.nvrtc.clone_from(&kept.nvrtc);
    }
    for (made, kept) in made.kernel.iter_mut().zip(&kept.kernel) {
        // Reasons are people's.
        made.because.clone_from(&kept.because);
        assert_eq!(made, kept, "{HINT}");
    }
    assert_eq!(made.kernel.len(), kept.kernel.len(), "{HINT}");
}

#[test]
fn every_kernel_of_every_pipeline_is_there_under_its_name_or_named_with_a_text_like_it() {
    let entries = entries();
    for pipeline in gallery::pipelines() {
        for model in KnownShape::published() {
            let plan = Plan::new(pipeline, model.geometry(KvType::Bf16), model.frequencies(), model.layers);
            let program = Program::new(&plan.expect("it fits"), Activation::F32).expect("a usual head");
            for kernel in program.kernels() {
                let named = |entry: &&Entry| entry.kernel.name == kernel.name || entry.also.contains(&kernel.name);
                let entry = entries.iter().filter(named).find(|entry| entry.models.contains(&model.name));
                let entry = entry.unwrap_or_else(|| panic!("{} is nowhere", kernel.name));
                // Names apart, which only a #line and the entry itself have, every line is the same.
                let pairs = entry.kernel.text.lines().zip(kernel.text.lines());
                let differing = pairs.filter(|(kept, made)| kept != made);
                for (kept, made) in differing {
                    let named = kept.contains(&entry.kernel.name) && made.contains(&kernel.name);
                    let line = kept.starts_with("#line 1 \"") && made.starts_with("#line 1 \"");
                    assert!(named || line, "{}: {made}", kernel.name);
                }
                assert_eq!(entry.kernel.text.lines().count(), kernel.text.lines().count(), "{}", kernel.name);
            }
        }
    }
}

/// What of a text tells it from the others: all but the prelude, which is the same in each.
fn own_text(entry: &Entry) -> String {
    let text = &entry.kernel.text;
    let start = text.find("#line 1 \"prelude.cu\"\n").expect("every kernel has the prelude");
    let end = start + 1 + text[start + 1..].find("\n#line 1 ").expect("the kernel follows the prelude");
    format!("{}// (prelude.cu){}", &text[..start], &text[end..])
}

/// For reviews, which a text of its own three times as long does not help: those of one pipeline do for all.
#[test]
fn the_text_of_every_kernel_of_the_model_and_of_one_pipeline_is_a_snapshot() {
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        for entry in entries().iter().filter(|entry| ["model/", "paper3k/"].iter().any(|at| entry.file.starts_with(at))) {
            insta::assert_snapshot!(entry.kernel.name.clone(), own_text(entry));
        }
    });
}

#[test]
fn no_text_has_a_path_or_a_header() {
    for entry in entries() {
        for (number, line) in entry.kernel.text.lines().enumerate() {
            let line_directive = line.starts_with("#line ");
            assert!(!line.contains("#include"), "{}:{}: {line}", entry.file, number + 1);
            assert!(!(line_directive && line.contains('/')), "{}:{}: {line}", entry.file, number + 1);
        }
    }
}
