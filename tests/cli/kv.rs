//! Keys and values in two tiers, as the command line tells of them: `ihip kv`, and `generate` with `--stats`.

use std::fs::File;

use ihip_runtime::kv::trace::{Header, Trace, write_header, write_layer};
use serde_json::Value;
use tempfile::TempDir;

use super::{endless, file_in, ihip, text};

/// Bytes of a page of keys, or of values, of a layer of the tiny model: 16 tokens of a head of 32 elements.
const PAGE: u64 = 16 * 32 * 4;

/// Layers of the tiny model.
const LAYERS: u64 = 4;

/// A prompt of 1,802 tokens and 40 more, keys in the first tier and most values in the second one.
fn generated(more: &[&str]) -> Value {
    let folder = TempDir::new().unwrap();
    let prompt = file_in(&folder, "prompt.txt", "a b ".repeat(600) + "\n");
    let request = ["generate", "--device", "cpu", "--model", endless(), "--prompt-file", &prompt, "--stats"];
    let tiers = ["--pruning", "Small", "--max-new-tokens", "40", "--prefill-chunk", "64", "--host-kv", "8MiB"];
    let outcome = ihip(&[&request[..], &tiers, more].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    serde_json::from_str(outcome.stderr.lines().last().expect("a line of JSON")).expect("it is JSON")
}

#[test]
fn stats_say_what_a_cache_of_two_tiers_did() {
    let stats = generated(&["--gpu-kv", "1200KiB"]);
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a count: {stats}"));
    let (tokens, kv) = (number(&stats["tokens"]["prompt"]) + 40, &stats["kv"]);
    for kind in ["keys", "values"] {
        let [here, there] = ["gpu", "host"].map(|tier| number(&kv[kind][tier]));
        // The last token that was written was never read.
        assert!((here + there).abs_diff(tokens) <= 16, "{kind}: {here} and {there} of {tokens} tokens");
        assert_eq!(there > 0, kind == "values", "{kind}: keys have the first claim on the GPU");
    }
    let ratio = |value: &Value| value.as_f64().expect("a share");
    assert!((0.0..1.0).contains(&ratio(&kv["hit_ratio"]["attend"])), "{stats}");
    let stages = kv["hit_ratio"]["stages"].as_array().expect("a share of each stage");
    assert!(stages.len() == 2 && stages.iter().all(|stage| ratio(stage) == 1.0), "scans read keys alone: {stats}");
    let [promotions, evictions, misses] = ["promotions", "evictions", "misses"].map(|what| number(&kv[what]));
    assert!(promotions > 0 && evictions > 0 && misses > 0, "{stats}");
    let bytes = ["promoted", "evicted", "missed"].map(|way| number(&kv["bytes"][way]));
    // Pages move, and rows of them are missed.
    assert_eq!(bytes, [promotions * PAGE, evictions * PAGE, misses * PAGE / 16], "{stats}");
    let [p50, p95, p99] = ["p50", "p95", "p99"].map(|share| ratio(&stats["token_ms"][share]));
    assert!(0.0 < p50 && p50 <= p95 && p95 <= p99, "{stats}");
    let with_host = number(&kv["values"]["host"]) / 16 * LAYERS * PAGE;
    assert!(number(&stats["host_kv_bytes"]) >= with_host, "room for what is there: {stats}");

    let stats = generated(&["--gpu-kv", "8MiB"]);
    assert!(stats["kv"].is_null() && stats["token_ms"]["p99"].is_f64(), "all is in one tier: {stats}");
}

#[test]
fn a_plan_says_how_many_tokens_fit_where() {
    let request = ["kv", "plan", "--tokens", "1300", "--device", "cpu", "--model", endless(), "--pruning", "Small"];
    insta::assert_snapshot!(ihip(&[&request[..], &["--gpu-kv", "1MiB", "--host-kv", "8MiB"]].concat()).text());
    let refusal = ihip(&[&request[..], &["--gpu-kv", "64KiB", "--host-kv", "8MiB"]].concat()).refusal();
    assert!(refusal.starts_with("error: 1300 tokens do not fit: 65536 bytes on the GPU"), "{refusal}");
}

#[test]
fn a_trace_of_a_run_is_replayed() {
    let folder = TempDir::new().unwrap();
    let path = text(&folder.path().join("pages"));
    generated(&["--gpu-kv", "1200KiB", "--dump-pages", &path]);
    let trace = Trace::read(&mut File::open(&path).unwrap()).expect("a trace");
    assert_eq!((trace.header.layers, trace.header.page, trace.steps.len()), (LAYERS as u32, 16, 39));
    assert!(trace.steps.iter().flatten().all(|[keys, values]| !values.is_empty() && keys.len() >= values.len()));
    let replayed = ihip(&["kv", "replay", &path, "--share", "1"]).text();
    assert!(replayed.lines().nth(1).is_some_and(|row| row.contains("100.00 %  100.00 %")), "{replayed}");
}

#[test]
fn a_replay_says_hits_tokens_and_bytes() {
    // A window that moves on, and a page far back that changes every fourth step.
    let mut trace = Vec::new();
    write_header(&mut trace, Header { layers: 2, page: 16, prompt: 1000 }).unwrap();
    for step in 0..40_u32 {
        for layer in 0..2 {
            let values: Vec<u32> = vec![0, 3 + step / 4 * 5 + layer, (1000 + step) / 16 - 1, (1000 + step) / 16];
            let keys = [&values[..1], &[1, 2], &values[1..]].concat();
            write_layer(&mut trace, &[keys, values]).unwrap();
        }
    }
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "pages", trace);
    let replayed =
        ihip(&["kv", "replay", &path, "--share", "1,0.5,0.2", "--model", "llama-3.1-8b", "--kv-type", "int4"]);
    insta::assert_snapshot!(replayed.text());
    let refusal = |more: [&str; 2]| ihip(&[&["kv", "replay", &path][..], &more].concat()).refusal();
    let small = refusal(["--share", "0.001"]);
    let (_, least) =
        small.split_once("a share of 0.001 is too small: pages move through at least ").expect("it is said");
    let (least, _) = least.split_once(',').expect("a share");
    assert_eq!(ihip(&["kv", "replay", &path, "--share", least]).code, Some(0));
    assert!(refusal(["--layers", "4097"]).contains("it must be a whole number from 1 to 4096"));
}
