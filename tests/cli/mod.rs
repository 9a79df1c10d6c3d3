//! The command line, run as a program.

mod bench;
mod cache;
mod figures;
mod help;
mod kernels;
mod kv;
mod masks;
mod pipelines;
mod refusals;
mod score;
mod text;
mod tokenize;

use std::path::Path;
use std::sync::OnceLock;

use ihip_tests::support::command::{self, Outcome};
use ihip_tests::support::gguf::{Builder, tiny_llama};
use tempfile::TempDir;

/// The program: `ihip` with a pipeline of its own.
const PROGRAM: &str = env!("CARGO_BIN_EXE_own_pipeline");

/// Runs the program without anything on standard input.
pub(crate) fn ihip(arguments: &[&str]) -> Outcome {
    command::run(PROGRAM, arguments, b"")
}

/// Runs the program with a text on standard input.
fn ihip_reading(arguments: &[&str], input: impl AsRef<[u8]>) -> Outcome {
    command::run(PROGRAM, arguments, input.as_ref())
}

/// Writes a model file into the folder that cargo keeps for tests.
fn model(name: &str, file: &Builder) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, file.build().bytes).expect("the folder takes a file");
    text(&path)
}

/// A tiny Llama whose end token has a logit of zero, which is never the largest: it writes until it is stopped.
fn endless() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut file = tiny_llama();
        let embedding = file.tensor("token_embd.weight");
        let row = embedding.bytes.len() / embedding.shape[1] as usize;
        embedding.bytes[END * row..(END + 1) * row].fill(0);
        model("endless.gguf", &file)
    })
}

/// The tiny Llama's end token, `<|im_end|>`.
const END: usize = 2;

/// A file of the test's own folder.
fn file_in(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("the folder takes a file");
    text(&path)
}

fn text(path: &Path) -> String {
    path.to_str().expect("the folders of tests have plain names").to_owned()
}
