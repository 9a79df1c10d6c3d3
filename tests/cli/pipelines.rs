//! `ihip pipelines`, and `--pruning` with a file.

use ihip_dsl::parse_toml;
use tempfile::TempDir;

use super::{endless, file_in, ihip, text};

/// The pipeline `Small` of the program, as a file.
fn small() -> String {
    ihip(&["pipelines", "export", "Small"]).text()
}

fn draw(arguments: &[&str]) -> String {
    ihip(&[&["pipelines", "draw"], arguments].concat()).text()
}

#[test]
fn a_list_has_a_line_for_each_pipeline() {
    let list = ihip(&["pipelines", "list"]).text();
    let line = |name: &str| list.lines().find(|line| line.split(' ').next() == Some(name)).expect("it is listed");
    assert!(list.lines().is_sorted(), "{list}");
    assert!(line("Paper3k").contains("  256 > 32 > 8, keeps 2048  "), "{list}");
    let small = line("Small").split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    let sentence = "Small enough to prune texts of a few hundred tokens; query blocks shrink from stage to stage.";
    assert_eq!(small.collect::<Vec<_>>(), ["Small", "32 > 8, keeps 64", sentence]);
}

#[test]
fn a_pipeline_is_shown_with_everything_inherited_written_out() {
    insta::assert_snapshot!(ihip(&["pipelines", "show", "Small"]).text());
}

#[test]
fn an_exported_pipeline_is_shown_and_exported_as_the_same() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "small.toml", small());
    assert_eq!(ihip(&["pipelines", "export", &path]).text(), small());
    let shown = ihip(&["pipelines", "show", "Small"]).text();
    assert_eq!(ihip(&["pipelines", "show", &path]).text(), shown);
    for pipeline in ihip_model::registry::all() {
        let exported = ihip(&["pipelines", "export", pipeline.name()]).text();
        assert_eq!(parse_toml(&exported).as_ref(), Ok(pipeline));
    }
}

#[test]
fn a_file_writes_what_the_declaration_writes() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "small.toml", small());
    let prompt = "It is a truth universally acknowledged. ".repeat(40);
    let generate = |pruning: &str| {
        let arguments = ["generate", "--device", "cpu", "--model", endless(), "--max-new-tokens", "20"];
        ihip(&[&arguments[..], &["--prompt", &prompt, "--pruning", pruning]].concat()).text()
    };
    assert_eq!(generate(&path), generate("Small"));
    let kernels = |pruning: &str| ihip(&["kernels", "list", pruning, "--model", "smollm2"]).text();
    assert_eq!(kernels(&path), kernels("Small"));
}

#[test]
fn every_mistake_of_a_file_is_told_with_its_line_and_exit_code_2() {
    let folder = TempDir::new().unwrap();
    let wrong = small().replace("window = 64", "window = 60").replacen("\"relative\"", "\"relativ\"", 1);
    let path = file_in(&folder, "wrong.toml", wrong);
    let refusal = ihip(&["generate", "--model", endless(), "--prompt", "x", "--pruning", &path]);
    assert_eq!((refusal.code, refusal.stdout.as_slice()), (Some(2), &b""[..]));
    insta::assert_snapshot!(refusal.stderr.replace(&path, "wrong.toml"));
    for command in [["pipelines", "show", &path], ["kernels", "list", &path]] {
        assert_eq!(ihip(&command), refusal);
    }
}

#[test]
fn what_is_unwise_in_a_file_is_a_line_on_standard_error() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "mine.toml", "name = \"Mine\"\ninherit = \"Small\"\nattend.keep = 256\n");
    let shown = ihip(&["pipelines", "show", &path]);
    assert_eq!(shown.code, Some(0));
    let text = "warning: mine.toml:3:15: `keep = 256` cuts nothing, because 128 tokens are left to cut: write `keep = 128` \
                or less, or remove a stage\n";
    assert_eq!(shown.stderr.replace(&path, "mine.toml"), text);
}

#[test]
fn a_file_that_is_not_there_or_no_text_is_refused() {
    let folder = TempDir::new().unwrap();
    let missing = text(&folder.path().join("none.toml"));
    let refusal = ihip(&["pipelines", "show", &missing]).refusal();
    assert_eq!(refusal, format!("error: cannot read {missing}: No such file or directory (os error 2)\n"));
    let path = file_in(&folder, "latin1.toml", b"name = \"caf\xe9\"");
    let refusal = ihip(&["pipelines", "show", &path]).refusal();
    let sentence = "is not UTF-8: byte 11 (counted from 0) begins no character; convert it first";
    assert_eq!(refusal, format!("error: {path} {sentence}\n"));
}

#[test]
fn no_control_character_of_a_name_reaches_the_terminal() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "red\u{1b}[31m.toml", "name \u{1b} = 1");
    for path in [path, text(&folder.path().join("no\u{1b}[31mne.toml"))] {
        let refusal = ihip(&["pipelines", "show", &path]).refusal();
        assert!(refusal.chars().all(|c| c == '\n' || !c.is_control()), "{refusal}");
    }
}

#[test]
fn a_picture_is_the_same_every_time_and_another_for_another_seed() {
    let picture = draw(&["Small", "--context", "4096"]);
    assert_eq!(draw(&["Small", "--context", "4096"]), picture);
    assert_ne!(draw(&["Small", "--context", "4096", "--seed", "1"]), picture);
    let folder = TempDir::new().unwrap();
    let path = text(&folder.path().join("small.svg"));
    assert_eq!(draw(&["Small", "--context", "4096", "-o", &path]), "");
    assert_eq!(std::fs::read_to_string(path).unwrap(), picture);
}

#[test]
fn a_context_to_draw_has_units_and_limits_and_its_file_is_tried_first() {
    assert_eq!(draw(&["Small", "--context", "4K"]), draw(&["Small", "--context", "4096"]));
    let refusal = |arguments: &[&str]| ihip(&[&["pipelines", "draw", "Small"], arguments].concat()).refusal();
    for context in ["10", "1M", "many"] {
        let said = refusal(&["--context", context]);
        assert!(
            said.contains("it must be a whole number of tokens from 4,096 to 262,144, such as 65536 or 64K"),
            "{said}"
        );
    }
    assert!(refusal(&["--seed", "-1"]).starts_with("error: invalid value '-1' for '--seed <NUMBER>'"));
    let folder = TempDir::new().unwrap();
    let path = text(&folder.path().join("no such folder/small.svg"));
    let said = format!("error: cannot write {path}: No such file or directory (os error 2)\n");
    assert_eq!(refusal(&["--output", &path]), said);
}

#[test]
fn a_picture_shows_what_each_stage_and_the_attention_are_left_with() {
    let labels = |picture: &str| -> Vec<String> {
        let texts = picture.lines().filter_map(|line| line.strip_prefix("<text")?.strip_suffix("</text>"));
        texts.filter_map(|text| Some(text.split_once('>')?.1.to_owned())).collect()
    };
    insta::assert_snapshot!(labels(&draw(&["Small", "--context", "4096"])).join("\n"));
    insta::assert_snapshot!(labels(&draw(&["Paper3k", "--layer", "0"])).join("\n"));
}
