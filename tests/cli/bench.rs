//! `ihip bench` and `ihip tune`: what is refused before a GPU is looked for.

use ihip_runtime::kv::trace::{Header, write_header, write_layer};

use super::ihip;

#[test]
fn of_attention_of_a_model_that_is_not_known() {
    let refusal = ihip(&["bench", "attention", "--model", "gpt-2"]).refusal();
    insta::assert_snapshot!(refusal, @r#"error: there is no geometry "gpt-2": known geometries are smollm2, llama-3.1-8b, phi-3-mini, gemma-2-2b"#);
}

#[test]
fn of_attention_in_a_layer_that_is_not_there() {
    let refusal = ihip(&["bench", "attention", "--layer", "32"]).refusal();
    assert_eq!(refusal, "error: there is no layer 32: the model has 32, counted from 0\n");
}

#[test]
fn of_attention_with_intervals_that_are_not_one_a_stage() {
    let refusal = ihip(&["bench", "attention", "--pruning", "dense,Paper3k", "--refresh", "96,24"]).refusal();
    insta::assert_snapshot!(refusal, @"error: --refresh has 2 intervals, but Paper3k has 3 stages: give one for each");
}

#[test]
fn of_a_request_whose_masks_hardly_ever_come_together_again() {
    let folder = tempfile::TempDir::new().unwrap();
    let refusal = |intervals: [usize; 3]| {
        let stage = |keys: &str, interval| format!("[[stage]]\n{keys}\nrefresh = {interval}\n");
        let stages = [
            stage("chunk = 256", intervals[0]),
            stage("keep = 32768\nchunk = 32", intervals[1]),
            stage("keep = 8192\nchunk = 8", intervals[2]),
        ];
        let rest = "[attend]\nkeep = 2048\n[rope]\nscan = \"relative\"\nattend = \"streaming\"\n";
        let text = format!("name = \"Rare\"\nsink = 256\nwindow = 1024\n{}{rest}", stages.concat());
        let path = super::file_in(&folder, "rare.toml", text);
        // Before it come warnings.
        ihip(&["bench", "kv", "--pruning", &path]).refusal().lines().last().map(str::to_owned).unwrap()
    };
    insta::assert_snapshot!(refusal([16_411, 16, 1]), @"error: the refresh intervals of Rare, 1 and 16 and 16411, come together again after more than 16384 steps: give intervals with a smaller common multiple");
    // Primes, whose product is 280 million million steps.
    let long = refusal([65_521, 65_519, 65_497]);
    assert!(long.contains("65497 and 65519 and 65521, come together again after more than 16384 steps"), "{long}");
}

#[test]
fn of_results_that_cannot_be_written() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = super::text(&folder.path().join("no such folder/rows.json"));
    for arguments in [["attention", "--json"], ["attention", "--svg"], ["tuning", "--json"], ["kv", "--json"]] {
        let refusal = ihip(&[&["bench"], &arguments[..], &[&path]].concat()).refusal();
        assert_eq!(refusal, format!("error: cannot write {path}: No such file or directory (os error 2)\n"));
    }
    // A file that is there is left as it is.
    let kept = super::file_in(&folder, "rows.json", "[1]");
    let refusal = ihip(&["bench", "attention", "--gpu", "4096", "--json", &kept]).refusal();
    assert!(refusal.starts_with("error: there is no device cuda:4096"), "{refusal}");
    assert!(!refusal.contains("--device"), "it has no such option: {refusal}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "[1]");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
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
    assert!(unknown.starts_with("error: there is no geometry \"gpt-2\": known geometries are smollm2, "), "{unknown}");
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
    let refusal = ihip(&["bench", "tuning", "--model", "smollm2,gpt-2"]).refusal();
    assert!(refusal.starts_with("error: there is no geometry \"gpt-2\": known geometries are smollm2, "), "{refusal}");
    for (arguments, said) in [
        (["--model", "gpt-2"], "there is no geometry \"gpt-2\": known geometries are smollm2, "),
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
