//! What `--help` says.

use super::ihip;

/// The help of a command, under the name that the real program has.
fn help(command: &[&str]) -> String {
    ihip(&[command, &["--help"]].concat()).text().replace("own_pipeline", "ihip")
}

#[test]
fn of_the_program() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn of_generate() {
    insta::assert_snapshot!(help(&["generate"]));
}

#[test]
fn of_score() {
    insta::assert_snapshot!(help(&["score"]));
}

#[test]
fn of_tokenize() {
    insta::assert_snapshot!(help(&["tokenize"]));
}

#[test]
fn of_pipelines() {
    insta::assert_snapshot!(help(&["pipelines"]));
}

#[test]
fn of_pipelines_draw() {
    insta::assert_snapshot!(help(&["pipelines", "draw"]));
}

#[test]
fn of_kernels() {
    insta::assert_snapshot!(help(&["kernels"]));
}

#[test]
fn of_kernels_export() {
    insta::assert_snapshot!(help(&["kernels", "export"]));
}

#[test]
fn of_cache() {
    insta::assert_snapshot!(help(&["cache"]));
}

#[test]
fn of_the_other_commands_of_kernels() {
    for command in ["list", "show", "explain", "check", "compile", "gallery"] {
        assert!(help(&["kernels", command]).contains(&format!("Usage: ihip kernels {command}")), "{command}");
    }
}
