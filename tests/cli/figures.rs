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

#[test]
fn medians_are_those_of_the_samples() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/figures");
    let files = fs::read_dir(folder).expect("the folder is there").map(|file| file.expect("it can be listed").path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|extension| extension == "json")).collect();
    assert!(!files.is_empty(), "there are figures");
    for file in files {
        let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for key in ["gpu", "driver", "cuda", "date", "commit", "command"] {
            assert!(report["machine"][key].is_string(), "{}: {key}", file.display());
        }
        let rows = report["rows"].as_array().expect("there are rows");
        assert!(!rows.is_empty(), "{}", file.display());
        for row in rows {
            let samples: Vec<f64> = row["samples"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            for (key, share) in [("median_us", 0.5), ("p95_us", 0.95)] {
                let said = row[key].as_f64().expect("a number");
                let found = quantile(&samples, share);
                // The median may have been taken before samples were rounded to a nanosecond.
                assert!((said - found).abs() <= 1e-3, "{}: {key} is {found}: {row}", file.display());
            }
        }
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
