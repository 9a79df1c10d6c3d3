//! The command line, run as a program.

mod help;
mod masks;
mod refusals;
mod text;
mod tokenize;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ihip_tests::support::command::{self, Outcome};
use ihip_tests::support::gguf::{Builder, tiny_llama};
use tempfile::TempDir;

/// The program: `ihip` with a pipeline of its own.
const PROGRAM: &str = env!("CARGO_BIN_EXE_own_pipeline");

/// Runs the program without anything on standard input.
fn ihip(arguments: &[&str]) -> Outcome {
    command::run(PROGRAM, arguments, b"")
}

/// Runs the program with a text on standard input.
fn ihip_reading(arguments: &[&str], input: impl AsRef<[u8]>) -> Outcome {
    command::run(PROGRAM, arguments, input.as_ref())
}

/// A folder with model files, removed at the end of the test process.
struct Models {
    folder: TempDir,
}

impl Models {
    fn write(&self, name: &str, file: &Builder) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, file.build().bytes).expect("the folder takes a file");
        path
    }
}

fn models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    MODELS.get_or_init(|| Models { folder: TempDir::new().expect("a folder for temporary files") })
}

/// A tiny Llama whose end token has a logit of zero, which is never the largest: it writes until it is stopped.
fn endless() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let mut file = tiny_llama();
        let embedding = file.tensor("token_embd.weight");
        let row = embedding.bytes.len() / embedding.shape[1] as usize;
        embedding.bytes[END * row..(END + 1) * row].fill(0);
        models().write("endless.gguf", &file)
    });
    path.to_str().expect("temporary folders have plain names")
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
    path.to_str().expect("temporary folders have plain names").to_owned()
}
