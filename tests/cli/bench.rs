//! `ihip bench` and `ihip tune`: what is refused before a GPU is looked for.

use super::ihip;

#[test]
fn of_attention_of_a_model_that_is_not_known() {
    let refusal = ihip(&["bench", "attention", "--model", "gpt-2"]).refusal();
    assert!(refusal.starts_with("error: there is no geometry or file \"gpt-2\""), "{refusal}");
}

#[test]
fn of_attention_in_a_layer_that_is_not_there() {
    let refusal = ihip(&["bench", "attention", "--layer", "32"]).refusal();
    assert_eq!(refusal, "error: there is no layer 32: the model has 32, counted from 0\n");
}

#[test]
fn of_attention_beside_peers_that_are_no_rows() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = super::file_in(&folder, "peers.json", "[{}]");
    let refusal = ihip(&["bench", "attention", "--peers", &path]).refusal();
    assert!(refusal.starts_with(&format!("error: cannot read {path}: missing field")), "{refusal}");
}

#[test]
fn of_attention_with_its_help() {
    insta::assert_snapshot!(ihip(&["bench", "attention", "--help"]).text().replace("own_pipeline", "ihip"));
}

#[test]
fn of_tuning_of_what_is_not_known_or_takes_no_time() {
    let refusal = ihip(&["bench", "tuning", "--model", "gpt-2"]).refusal();
    assert!(refusal.starts_with("error: there is no geometry or file \"gpt-2\""), "{refusal}");
    for (arguments, said) in [
        (["--model", "gpt-2"], "there is no geometry or file \"gpt-2\""),
        (["--pruning", "Paper4k"], "there is no pipeline Paper4k: did you mean"),
        (["--minutes", "0"], "it must be a positive number of minutes, such as 5 or 0.5"),
    ] {
        let refusal = ihip(&[&["tune", "kernels"], &arguments[..]].concat()).refusal();
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[test]
fn of_tuning_with_its_help() {
    for (name, arguments) in [("tune_kernels", ["tune", "kernels"]), ("bench_tuning", ["bench", "tuning"])] {
        let help = ihip(&[&arguments[..], &["--help"]].concat()).text().replace("own_pipeline", "ihip");
        insta::assert_snapshot!(name, help);
    }
}

#[test]
fn of_a_tuning_table_that_is_none() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = super::file_in(&folder, "table.toml", "[[choice]]\nkernel = 1\n");
    let mut compile = ihip_tests::support::command::command(super::PROGRAM, &["kernels", "compile", "dense"]);
    let compile = compile.env("IHIP_TUNING", &path).env("IHIP_CACHE", folder.path()).output().unwrap();
    let said = String::from_utf8(compile.stderr).unwrap();
    assert_eq!(compile.status.code(), Some(2), "{said}");
    assert!(said.starts_with(&format!("error: IHIP_TUNING: {path} is no tuning table: ")), "{said}");
}
