//! The fenced blocks of README and book.

use std::path::{Path, PathBuf};

/// What stands between two fences.
pub(super) struct Block {
    /// The page, from the root of the repository.
    pub(super) page: String,
    /// What follows the opening fence, such as `rust` or `rust,compile_fail`.
    pub(super) kind: String,
    /// The lines between.
    pub(super) text: String,
}

/// Root of the repository.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every page: its path from the root, and its text; README first, the book by path.
pub(super) fn pages() -> Vec<(String, String)> {
    let mut paths = vec![PathBuf::from("README.md")];
    for folder in ["docs/src", "docs/src/words"] {
        let files = root().join(folder).read_dir().expect("the book is there");
        let mut files: Vec<_> = files.map(|file| Path::new(folder).join(file.unwrap().file_name())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
        files.sort();
        paths.extend(files);
    }
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read_to_string(root().join(&path)).unwrap());
    paths.into_iter().map(read).collect()
}

/// Every block, page by page.
pub(super) fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (page, text) in pages() {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(kind) = line.strip_prefix("```") else { continue };
            let body: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { page: page.clone(), kind: kind.to_owned(), text: body.join("\n") + "\n" });
        }
    }
    blocks
}
