//! What was measured: rows of samples, the machine they come from, and both as JSON.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use ihip_runtime::device::cuda::AttentionTimer;
use serde::{Deserialize, Serialize};

use crate::cli::error::Result;

/// A measurement of a machine, as `docs/figures` keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// Where it was measured.
    pub(super) machine: Machine,
    /// What the machine does at best.
    pub(super) ceilings: Ceilings,
    /// What was timed.
    pub(super) rows: Vec<Row>,
}

/// Where and of what a measurement is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Machine {
    /// The GPU.
    pub(in crate::cli) gpu: String,
    /// The NVIDIA driver.
    pub(in crate::cli) driver: String,
    /// The newest CUDA that the driver runs.
    pub(in crate::cli) cuda: String,
    /// The day, `2026-01-31`.
    pub(in crate::cli) date: String,
    /// The commit that was measured, where it was told.
    pub(super) commit: Option<String>,
    /// How.
    pub(super) command: String,
}

impl Machine {
    /// The machine that `timer` runs on, today.
    ///
    /// # Errors
    /// Where the driver fails to answer.
    pub(in crate::cli) fn of(timer: &AttentionTimer, commit: Option<String>) -> Result<Self> {
        let name = timer.name();
        let gpu = name.split_once('(').map_or(&*name, |(_, rest)| rest.trim_end_matches(')')).to_owned();
        let command: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            gpu,
            driver: driver(),
            cuda: timer.driver()?,
            date: today(),
            commit,
            command: format!("ihip {}", command.join(" ")),
        })
    }
}

/// The version that the kernel module says, such as `580.159.04`.
fn driver() -> String {
    let text = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_version).unwrap_or("unknown").to_owned()
}

/// The day in UTC, `2026-01-31`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Days are counted from 1 March of the year 0, so that leap days come last (the algorithm of days_from_civil).
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// What a machine does at best, medians of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ceilings {
    /// Bytes a second that a device copy reads and writes together.
    pub(super) copy: f64,
    /// Bytes a second that a kernel reads.
    pub(super) read: f64,
    /// Operations a second of a product of bf16 matrices.
    pub(super) product: f64,
    /// Microseconds of a graph of one kernel that does nothing.
    pub(super) launch_us: f64,
}

/// One thing that was timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    /// `decode` or `prefill`.
    pub(super) phase: String,
    /// Tokens of the context.
    pub(super) context: usize,
    /// From where masks are renewed: `none`, `all`, `from stage 1`, or the intervals of a mean such as `16,8,4`.
    pub(super) refresh: String,
    /// The pipeline, or `dense`.
    pub(super) pipeline: String,
    /// `ihip`, `dense-ihip`, `dense` or `authors`.
    pub(super) method: String,
    /// The median of the samples, in microseconds.
    pub(super) median_us: f64,
    /// What 5 of 100 samples are below.
    pub(super) p5_us: f64,
    /// What 5 of 100 samples are above.
    pub(super) p95_us: f64,
    /// Bytes of keys and values that come from memory at least.
    pub(super) bytes: f64,
    /// Multiplications and additions of the attention, without those of scans.
    pub(super) operations: f64,
    /// Every sample, in microseconds.
    pub(super) samples: Vec<f64>,
}

impl Row {
    /// A row of samples in seconds.
    pub(super) fn new(phase: &str, context: usize, refresh: String, pipeline: &str, seconds: &[f64]) -> Self {
        let samples: Vec<f64> = seconds.iter().map(|seconds| (seconds * 1e9).round() / 1e3).collect();
        let method = if pipeline == "dense" { "dense-ihip" } else { "ihip" };
        Self {
            phase: phase.to_owned(),
            context,
            refresh,
            pipeline: pipeline.to_owned(),
            method: method.to_owned(),
            median_us: quantile(&samples, 0.5),
            p5_us: quantile(&samples, 0.05),
            p95_us: quantile(&samples, 0.95),
            bytes: 0.0,
            operations: 0.0,
            samples,
        }
    }
}

/// Which stages a step renews, as rows say it.
pub(super) fn renewed(restart: Option<usize>) -> String {
    match restart {
        None => "none".to_owned(),
        Some(0) => "all".to_owned(),
        Some(stage) => format!("from stage {stage}"),
    }
}

/// The value that a share of the samples does not exceed, halfway between two samples where it falls between them.
pub(super) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    sorted[below] + (sorted[(below + 1).min(last)] - sorted[below]) * part
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_lie_between_samples() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), 2.5);
        assert_eq!(quantile(&[5.0], 0.95), 5.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
