//! `ihip bench` and `ihip tune`: what is refused before a GPU is looked for.

use ihip_runtime::kv::trace::{Header, write_header, write_layer};

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
fn of_a_request_in_two_tiers_whose_arguments_do_not_go_together() {
    let refusal = |arguments: &[&str]| ihip(&[&["bench", "kv"], arguments].concat()).refusal();
    let unknown = refusal(&["--model", "gpt-2"]);
    assert!(unknown.starts_with("error: there is no geometry or file \"gpt-2\""), "{unknown}");
    assert_eq!(
        refusal(&["--context", "1M,2M,3M", "--kv-type", "e4m3,int4"]),
        "error: 2 types of keys and values are given for 3 contexts: give one, or one for each\n"
    );
}

#[test]
fn of_a_request_in_two_tiers_with_a_page_trace_that_is_none_or_too_short() {
    let folder = tempfile::TempDir::new().unwrap();
    let refusal = |bytes: &[u8]| {
        let path = super::file_in(&folder, "pages", bytes);
        ihip(&["bench", "kv", "--steps", "96", "--trace", &path]).refusal().replace(&path, "FILE")
    };
    assert_eq!(
        refusal(b"pages"),
        "error: FILE: it does not begin as a page trace: record one with `ihip generate --dump-pages`\n"
    );
    let mut trace = Vec::new();
    write_header(&mut trace, Header { layers: 1, page: 16, prompt: 100 }).unwrap();
    (0..2).for_each(|_| write_layer(&mut trace, &[vec![0, 3], vec![3]]).unwrap());
    assert_eq!(
        refusal(&trace),
        "error: FILE has 2 steps, and 288 are taken: record them with `ihip generate --dump-pages --max-new-tokens 289`\n"
    );
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
fn of_the_others_with_their_help() {
    let commands =
        [("tune_kernels", ["tune", "kernels"]), ("bench_tuning", ["bench", "tuning"]), ("bench_kv", ["bench", "kv"])];
    for (name, arguments) in commands {
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
