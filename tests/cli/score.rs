//! `ihip score`.

use ihip_tests::support::model::book;
use serde_json::Value;

use super::{endless, ihip, ihip_reading};

/// The report on 900 tokens of a book, or their first characters.
fn score(arguments: &[&str]) -> Value {
    let options = ["score", "--device", "cpu", "--model", endless(), "--tokens", "900", "--json"];
    let text: String = book().chars().take(2_000).collect();
    serde_json::from_str(&ihip_reading(&[&options[..], arguments].concat(), text).text()).unwrap()
}

#[test]
fn every_token_but_the_first_is_scored() {
    let report = score(&["--pruning", "Small"]);
    let of = |field: &str| report[field].as_u64().unwrap();
    assert_eq!([of("tokens"), of("first"), of("last"), of("scored")], [900, 1, 899, 899]);
    assert_eq!(report["pruning"], "Small");
    let (nll, perplexity) = (report["nll"].as_f64().unwrap(), report["perplexity"].as_f64().unwrap());
    // Noise knows nothing of English: it cannot do much better than choosing among 271 tokens blindly.
    assert!(nll > 271_f64.ln() - 1.0, "{nll}");
    assert!((perplexity - nll.exp()).abs() < 1e-9 * perplexity);
    assert_eq!(report.get("windows"), None);
}

#[test]
fn windows_make_up_the_whole_and_the_last_is_its_end() {
    let report = score(&["--every", "128"]);
    let windows = report["windows"].as_array().unwrap();
    let firsts: Vec<_> = windows.iter().map(|window| window["first"].as_u64().unwrap()).collect();
    assert_eq!(firsts, [1, 128, 256, 384, 512, 640, 768, 896]);
    let sum = |window: &Value| window["nll"].as_f64().unwrap() * window["scored"].as_f64().unwrap();
    assert!((windows.iter().map(sum).sum::<f64>() - sum(&report)).abs() < 1e-6);
    let last = score(&["--last", "4"]);
    assert_eq!(last["first"], 896);
    assert_eq!(last["nll"], windows[7]["nll"]);
}

#[test]
fn steps_of_the_text_do_not_change_the_score() {
    for pruning in ["dense", "Small", "Paper3k"] {
        let small = score(&["--pruning", pruning, "--prefill-chunk", "64"]);
        assert_eq!(score(&["--pruning", pruning, "--prefill-chunk", "8192"]), small, "{pruning}");
    }
}

#[test]
fn a_step_of_several_segments_scores_as_steps_of_one_do() {
    let text: String = book().chars().take(19_000).collect();
    for pruning in ["Small", "Paper3k"] {
        let score = |chunk| {
            let options = ["score", "--device", "cpu", "--model", endless(), "--json", "--prefill-chunk", chunk];
            let options = [&options[..], &["--pruning", pruning, "--every", "1000"]].concat();
            serde_json::from_str::<Value>(&ihip_reading(&options, text.clone()).text()).unwrap()
        };
        let (short, long) = (score("2048"), score("16384"));
        assert!(short["tokens"].as_u64().unwrap() > 16_384, "two segments in the first step, and more in the second");
        assert_eq!(long, short, "{pruning}");
    }
}

#[test]
fn numbers_of_tokens_have_units() {
    assert_eq!(score(&["--every", "1K", "--last", "1K"]), score(&["--every", "1024", "--last", "1024"]));
}

#[test]
fn the_table_has_a_line_for_every_window_and_one_for_the_whole() {
    let options = ["score", "--device", "cpu", "--model", endless(), "--prompt", "a b c d e f", "--every", "4"];
    let table = ihip(&options).text();
    let positions: Vec<_> = table.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(positions, ["positions", "1..=3", "4..=7", "8..=10", "1..=10"]);
}
