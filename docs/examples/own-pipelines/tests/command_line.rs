//! The program of this crate knows its pipelines by their names.

use std::process::Command;

/// What the program writes.
fn own_pipelines(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_own-pipelines")).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it writes text")
}

#[test]
fn its_pipelines_are_listed_beside_the_presets() {
    let list = own_pipelines(&["pipelines", "list"]);
    for name in ["MeansThenMaxima", "Pages", "Paper3k"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name} in\n{list}");
    }
}

#[test]
fn its_pipelines_are_shown_drawn_and_become_kernels() {
    let shown = own_pipelines(&["pipelines", "show", "Pages"]);
    assert!(shown.contains("representative min_max") && shown.contains("ranking kv_group"), "{shown}");
    let drawn = own_pipelines(&["pipelines", "draw", "MeansThenMaxima", "--context", "8192"]);
    assert!(drawn.starts_with("<svg") && drawn.contains("after stage 2"), "{drawn}");
    let kernels = own_pipelines(&["kernels", "list", "Pages", "--model", "smollm2"]);
    assert!(kernels.contains("ihip_pages_"), "{kernels}");
}
