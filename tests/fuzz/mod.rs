//! The targets of `cargo fuzz` without it: every reader of outside input over its corpus and over damage done to that.
//!
//! A folder of `tests/fuzz/corpus` has whole inputs, which its reader takes, and others, whose names begin with `no_`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ihip_tests::support::allocation::peak;
use ihip_tests::support::gguf::tiny_llama;
use ihip_tests::support::inputs::{READERS, Read};
use ihip_tests::support::sample::Random;

mod mutation;

/// Damaged inputs of each reader.
const CASES: u64 = 3000;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz")).join(name)
}

fn names(folder: &PathBuf) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("a readable folder").file_name().display().to_string()).collect()
}

/// Inputs of a reader: the corpus, and a whole model, which is too large to be kept.
fn seeds(reader: &str) -> Vec<Vec<u8>> {
    let folder = folder("corpus").join(reader);
    let kept = names(&folder).into_iter().map(|name| std::fs::read(folder.join(name)).expect("a file of the corpus"));
    let model = ["gguf", "model", "tokenizer"].contains(&reader).then(|| tiny_llama().build().bytes);
    kept.chain(model).collect()
}

#[test]
fn every_reader_has_a_target_and_a_corpus() {
    let readers: BTreeSet<String> = READERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let targets = readers.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&folder("fuzz_targets")), targets);
    assert_eq!(names(&folder("corpus")), readers);
    let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in &readers {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
        let target = std::fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(target.contains(&format!("ihip_tests::support::inputs::{name}(bytes)")), "{target}");
    }
}

#[test]
fn whole_inputs_are_taken_and_others_are_not() {
    for (reader, read) in READERS {
        let folder = folder("corpus").join(reader);
        let names = names(&folder);
        assert!(names.iter().any(|name| name.starts_with("no_")), "{reader}: nothing that is refused");
        for name in names {
            let bytes = std::fs::read(folder.join(&name)).expect("a file of the corpus");
            assert_eq!(read(&bytes), !name.starts_with("no_"), "{reader}/{name}");
        }
    }
    assert!(
        READERS.iter().find(|(name, _)| *name == "model").is_some_and(|(_, read)| read(&tiny_llama().build().bytes))
    );
}

/// Reads damaged inputs; a panic, or memory that only a number in the file stands for, is a failure with its bytes.
fn damaged(reader: &str, read: Read) {
    let seeds = seeds(reader);
    let mut taken = 0;
    for case in 0..CASES {
        let bytes = mutation::mutated(&seeds, &mut Random(case));
        let (is_taken, most) = peak(|| read(&bytes));
        taken += u64::from(is_taken);
        // A table has an entry for every few bytes of the file, weights are f32 where the file has 4 bits.
        let allowed = 64 * bytes.len() + (1 << 20);
        assert!(most <= allowed, "{reader}, case {case}: {} bytes take {most} bytes of memory", bytes.len());
    }
    assert!(taken > 0, "{reader}: all damaged inputs were refused: nothing behind the first check is tested");
}

#[test]
fn damaged_declarations_are_refused_or_read() {
    damaged("grammar", READERS[0].1);
}

#[test]
fn damaged_gguf_files_are_refused_or_read() {
    damaged("gguf", READERS[1].1);
}

#[test]
fn damaged_tokenizers_are_refused_or_read() {
    damaged("tokenizer", READERS[2].1);
}

#[test]
fn damaged_models_are_refused_or_read() {
    damaged("model", READERS[3].1);
}

#[test]
fn damaged_cubins_are_refused_or_read() {
    damaged("cubin", READERS[4].1);
}

#[test]
fn damaged_manifests_are_refused_or_read() {
    damaged("manifest", READERS[5].1);
}

#[test]
fn damaged_files_of_pipelines_are_refused_or_read() {
    damaged("toml", READERS[6].1);
}

#[test]
fn damaged_safetensors_files_are_refused_or_read() {
    damaged("safetensors", READERS[7].1);
}

/// Nesting must not use up the stack.
#[test]
fn deep_nesting_is_refused() {
    for (reader, opening) in [
        ("grammar", "{"),
        ("grammar", "pub A { stage {"),
        ("manifest", "a = [["),
        ("toml", "a = [["),
        ("toml", "[a."),
        ("toml", "a = {a = "),
    ] {
        let (_, read) = READERS.iter().find(|(name, _)| *name == reader).expect("a reader of that name");
        assert!(!read(opening.repeat(20_000).as_bytes()), "{reader}: {opening}");
    }
}
