//! The book: its blocks compile, its commands parse, its messages are produced, its words are those of the language.

mod blocks;
mod commands;
mod files;
mod presets;
mod words;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use blocks::{Block, blocks, pages, root};
use ihip_dsl::{parse_str, parse_str_among};
use ihip_model::presets::Paper3k;
use ihip_model::{Pruning, registry};
use proc_macro2::{TokenStream, TokenTree};

/// What stands between the braces of every `pruning!` in `tokens`.
fn declarations(tokens: TokenStream) -> Vec<TokenStream> {
    let mut found = Vec::new();
    let mut before = [String::new(), String::new()];
    for token in tokens {
        let text = token.to_string();
        if let TokenTree::Group(group) = token {
            match before.each_ref().map(String::as_str) {
                ["pruning", "!"] => found.push(group.stream()),
                _ => found.extend(declarations(group.stream())),
            }
        }
        let [_, last] = before;
        before = [last, text];
    }
    found
}

/// Declarations of a block of Rust.
fn declared(block: &Block) -> Vec<TokenStream> {
    declarations(block.text.parse().unwrap_or_else(|error| panic!("{}: {error}", block.page)))
}

#[test]
fn every_message_is_what_the_declaration_above_it_raises() {
    let blocks = blocks();
    let (mut said, mut raised, mut wrong) = (String::new(), String::new(), 0);
    for pair in blocks.windows(2).filter(|pair| pair[0].kind == "rust,compile_fail") {
        let Block { page, kind, text } = &pair[1];
        assert_eq!(kind, "text", "{page}: a wrong declaration is followed by its messages");
        write!(said, "{page}\n{text}").unwrap();
        writeln!(raised, "{page}").unwrap();
        for declaration in declared(&pair[0]) {
            let errors = parse_str_among(&declaration.to_string(), &registry::declared()).expect_err(page);
            errors.iter().for_each(|error| writeln!(raised, "error: {}", error.rule).unwrap());
        }
        wrong += 1;
    }
    assert_eq!(said, raised);
    assert_eq!(wrong, blocks.iter().filter(|block| block.kind == "rust,compile_fail").count());
}

#[test]
fn every_block_of_rust_compiles_and_no_two_pipelines_share_a_name() {
    let mut program = String::from("#![allow(dead_code)]\n");
    for (index, block) in blocks().iter().filter(|block| block.kind == "rust").enumerate() {
        writeln!(program, "/* {} */ mod block_{index} {{\n{}}}", block.page, block.text).unwrap();
    }
    program += "fn main() { assert_eq!(ihip_model::registry::verify(), Ok(())); }\n";
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("every_block_of_the_book.rs");
    std::fs::write(&path, program).unwrap();
    trybuild::TestCases::new().pass(path);
}

#[test]
fn every_part_of_a_declaration_stands_in_a_whole_one_of_its_page() {
    let blocks = blocks();
    for part in blocks.iter().filter(|block| block.kind == "rust,part") {
        let mut wholes = blocks.iter().filter(|block| block.kind == "rust" && block.page == part.page);
        assert!(wholes.any(|whole| whole.text.contains(part.text.trim())), "{}: {}", part.page, part.text);
    }
}

#[test]
fn the_kernels_of_the_book_are_those_of_the_declaration_beside_them() {
    let page = "docs/src/stage-to-kernel.md";
    let block = blocks().into_iter().find(|block| block.kind == "rust" && block.page == page).unwrap();
    let [declaration] = declared(&block).try_into().expect("one declaration");
    let pipelines = parse_str(&declaration.to_string()).unwrap();
    assert_eq!(pipelines[0].base(), Paper3k::pipeline().base());
}

#[test]
fn every_excerpt_of_a_kernel_stands_in_the_gallery() {
    let folder = root().join("kernels-generated/paper3k");
    let kernels = folder.read_dir().unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let kernels: Vec<_> = kernels.collect();
    let excerpts: Vec<_> = blocks().into_iter().filter(|block| block.kind == "cuda").collect();
    assert!(!excerpts.is_empty());
    for excerpt in excerpts {
        assert!(kernels.iter().any(|kernel| kernel.contains(&excerpt.text)), "{}:\n{}", excerpt.page, excerpt.text);
    }
}

#[test]
fn every_fence_is_of_a_kind_that_is_tested() {
    for block in blocks() {
        let known =
            ["rust", "rust,part", "rust,compile_fail", "toml", "toml,wrong", "toml,unwise", "text", "sh", "cuda"];
        assert!(known.contains(&block.kind.as_str()), "{}: a block of `{}`", block.page, block.kind);
    }
}

#[test]
fn every_link_leads_to_a_file_and_every_page_is_in_the_summary() {
    let pages = pages();
    let (_, summary) = pages.iter().find(|(page, _)| page.ends_with("SUMMARY.md")).expect("a summary");
    for (page, text) in &pages {
        let folder = root().join(Path::new(page).parent().unwrap());
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            assert!(link.starts_with("https://") || folder.join(link).is_file(), "{page}: {link}");
        }
        if let Some(name) = page.strip_prefix("docs/src/").filter(|name| *name != "SUMMARY.md") {
            assert!(summary.contains(&format!("({name})")), "{name} is not in the summary");
        }
    }
}

#[test]
fn the_pictures_are_what_their_program_draws() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    std::fs::copy(root().join("docs/pictures.py"), folder.path().join("pictures.py")).unwrap();
    let status = Command::new("python3").arg(folder.path().join("pictures.py")).status().expect("python3 starts");
    assert!(status.success());
    let drawn = |pictures: &Path| {
        let files = pictures.read_dir().unwrap().map(|file| file.unwrap().path());
        let read = |path: std::path::PathBuf| (path.file_name().unwrap().to_owned(), std::fs::read(path).unwrap());
        files.map(read).collect::<std::collections::BTreeMap<_, _>>()
    };
    assert!(
        drawn(&folder.path().join("src/pictures")) == drawn(&root().join("docs/src/pictures")),
        "run docs/pictures.py"
    );
}
