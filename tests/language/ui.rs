//! Whole declarations, as a compiler sees them.

use std::fmt::Write;
use std::path::Path;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::doors::of_a_file;
use super::random::{RUST_PARENT, declarations};

/// Declarations that are compiled.
const SAMPLE: usize = 40;

/// `tests/ui/pass` compiles and runs; `tests/ui/fail` does not compile, and says why in the `.stderr` beside it.
#[test]
fn right_declarations_compile_and_wrong_ones_say_why() {
    let cases = trybuild::TestCases::new();
    cases.pass("ui/pass/*.rs");
    cases.compile_fail("ui/fail/*.rs");
}

#[test]
fn a_sample_of_what_is_right_compiles_to_the_same_pipelines() {
    let mut runner = TestRunner::deterministic();
    // Not every module inherits, and unwise declarations are right ones.
    let mut program = String::from("#![allow(dead_code, unused_imports, deprecated)]\n");
    writeln!(program, "ihip_model::pruning! {{{RUST_PARENT}}}").unwrap();
    let mut checks = String::new();
    let mut count = 0;
    while count < SAMPLE {
        let declaration = declarations().new_tree(&mut runner).unwrap().current();
        let (text, Ok(pipeline)) = (declaration.to_string(), of_a_file(&declaration.toml())) else { continue };
        writeln!(program, "mod of_{count} {{ use super::Parent; ihip_model::pruning! {{\n{text}}} }}").unwrap();
        let ident = text.lines().find_map(|line| line.strip_prefix("pub ")?.split([' ', ':']).next()).expect("a name");
        let toml = pipeline.toml();
        writeln!(checks, "assert_eq!(<of_{count}::{ident} as Pruning>::pipeline().toml(), {toml:?});").unwrap();
        count += 1;
    }
    writeln!(program, "fn main() {{\nuse ihip_model::Pruning;\n{checks}}}").unwrap();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("a_sample_of_what_is_right.rs");
    std::fs::write(&path, program).unwrap();
    trybuild::TestCases::new().pass(path);
}
