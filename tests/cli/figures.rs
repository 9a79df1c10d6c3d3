//! Measurements that `docs/figures` keeps: what they say of their samples is so.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The value that a share of the samples does not exceed, halfway between two where it falls between them.
fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * (sorted.len() - 1) as f64;
    let above = sorted[(at as usize + 1).min(sorted.len() - 1)];
    sorted[at as usize] + (above - sorted[at as usize]) * at.fract()
}

/// Every measurement with its file.
fn reports() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/figures");
    let files = fs::read_dir(folder).expect("the folder is there").map(|file| file.expect("it can be listed").path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    let report = |file: std::path::PathBuf| {
        let report = serde_json::from_str(&fs::read_to_string(&file).expect("it can be read")).expect("it is JSON");
        (file.display().to_string(), report)
    };
    files.map(report).collect()
}

fn rows(report: &Value) -> &Vec<Value> {
    let rows = report["rows"].as_array().expect("there are rows");
    assert!(!rows.is_empty());
    rows
}

fn samples(row: &Value) -> Vec<f64> {
    row["samples"].as_array().expect("there are samples").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
fn every_measurement_says_where_it_was_made() {
    let reports = reports();
    assert!(reports.len() >= 2, "there are figures");
    for (file, report) in reports {
        for key in ["gpu", "driver", "cuda", "date", "commit", "command"] {
            assert!(report["machine"][key].is_string(), "{file}: {key}");
        }
    }
}

#[test]
fn medians_are_those_of_the_samples() {
    let mut compared = 0;
    for (file, report) in reports() {
        for row in rows(&report).iter().filter(|row| row["what"].is_null()) {
            let samples = samples(row);
            for (key, share) in [("median_us", 0.5), ("p95_us", 0.95)] {
                let said = row[key].as_f64().expect("a number");
                let found = quantile(&samples, share);
                // The median may have been taken before samples were rounded to a nanosecond.
                assert!((said - found).abs() <= 1e-3, "{file}: {key} is {found}: {row}");
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "there are figures");
}

/// The first row whose value is something else than its samples come to, where the row says what it makes of them.
fn wrong_row(rows: &[Value]) -> Option<&Value> {
    let rank = |samples: &[f64], share: f64| {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[(share * samples.len() as f64).ceil() as usize - 1]
    };
    rows.iter().filter(|row| row["what"].is_string()).find(|row| {
        let (what, samples) = (row["what"].as_str().unwrap_or_default(), samples(row));
        let found = match what.rsplit_once(", ").map(|(_, made)| made) {
            Some("mean") => samples.iter().sum::<f64>() / samples.len() as f64,
            Some("median") => quantile(&samples, 0.5),
            Some("p50") => rank(&samples, 0.5),
            Some("p95") => rank(&samples, 0.95),
            Some("p99") => rank(&samples, 0.99),
            Some("p99 over p50") => rank(&samples, 0.99) / rank(&samples, 0.5),
            _ => return !samples.is_empty(),
        };
        let said = row["value"].as_f64().unwrap_or(f64::NAN);
        // NaN is not right, either.
        let is_right = (said - found).abs() <= 1e-9 * found.abs();
        !is_right
    })
}

#[test]
fn what_is_said_of_steps_in_two_tiers_is_made_of_the_samples() {
    for (file, report) in reports() {
        let rows = rows(&report);
        assert_eq!(wrong_row(rows), None, "{file}");
        for row in rows.iter().filter(|row| row["what"].is_string()) {
            assert!(row["context"].is_u64() && row["gpu_budget"].is_u64(), "{file}: {row}");
            assert!(row["kv_type"].is_string() && row["unit"].is_string(), "{file}: {row}");
        }
    }
}

#[test]
fn a_percentile_that_is_none_is_found() {
    let samples: Vec<f64> = (1..=200).map(f64::from).collect();
    let row = |what: &str, value: f64| serde_json::json!({ "what": what, "value": value, "samples": samples });
    let right = [
        row("decode step, mean", 100.5),
        row("decode step, p50", 100.0),
        row("decode step, p95", 190.0),
        row("decode step, p99", 198.0),
        row("decode step, p99 over p50", 1.98),
        row("gather of cold rows, median", 100.5),
        serde_json::json!({ "what": "tokens that fit", "value": 3e6, "samples": [] }),
    ];
    assert_eq!(wrong_row(&right), None);
    for index in 0..right.len() - 1 {
        let mut rows = right.clone();
        rows[index]["value"] = (right[index]["value"].as_f64().unwrap() + 0.01).into();
        assert_eq!(wrong_row(&rows), Some(&rows[index]));
    }
}

/// What identifies a part of a request in rows and ratios.
fn part(of: &Value) -> Vec<Value> {
    ["model", "pipeline", "context", "phase", "refresh"].map(|key| of[key].clone()).to_vec()
}

#[test]
fn ratios_of_tuned_to_declared_kernels_are_those_of_the_medians() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/figures/tuning-h200.json");
    let report: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let rows = report["rows"].as_array().expect("there are rows");
    let ratios = report["ratios"].as_array().expect("there are ratios");
    assert_eq!(rows.len(), 2 * ratios.len());
    let (mut pipelines, mut models) = (Vec::new(), Vec::new());
    for ratio in ratios {
        let median = |kernels: &str| {
            let own = |row: &&Value| part(row) == part(ratio) && row["kernels"] == kernels;
            let row = rows.iter().find(own).expect("there is a row");
            let samples: Vec<f64> = row["samples"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            quantile(&samples, 0.5)
        };
        let found = median("tuned") / median("declared");
        let said = ratio["ratio"].as_f64().expect("a number");
        assert!((found - said).abs() < 1e-4, "{ratio} is {found}");
        pipelines.push(ratio["pipeline"].as_str().expect("a name").to_owned());
        models.push(ratio["model"].as_str().expect("a name").to_owned());
    }
    for names in [&mut pipelines, &mut models] {
        names.sort_unstable();
        names.dedup();
    }
    assert!(pipelines.len() >= 3 && models.len() >= 2, "{pipelines:?} {models:?}");
}
