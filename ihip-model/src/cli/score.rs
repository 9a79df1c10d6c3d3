//! `ihip score`: how well the model predicts a text.

use std::fmt::Write;
use std::ops::Range;

use clap::Args;
use ihip_runtime::Device;
use serde::Serialize;

use super::arguments;
use super::device::{DeviceArguments, Settings, Work};
use super::error::{Error, Result};
use super::interrupt;
use super::model::{self, ModelArguments, Reserve};
use super::output;
use super::progress::RequestBar;
use super::prompt::Prompt;
use super::pruning::{self, Pruning};
use crate::Special;
use crate::generate::{Extent, Generation, Interrupt};

/// Prints the negative log-likelihood a token of a text
///
/// Every token but the first is scored by the logits after those before it, natural logarithm. A window is printed as
/// the positions of its first and last scored token.
#[derive(Debug, Args)]
pub(super) struct Score {
    #[command(flatten)]
    prompt: Prompt,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    pruning: Pruning,
    #[command(flatten)]
    device: DeviceArguments,
    /// Use only the first N tokens of the text
    #[arg(long, value_name = "N", value_parser = arguments::tokens, allow_negative_numbers = true)]
    tokens: Option<usize>,
    /// Score only the last N tokens used
    #[arg(long, value_name = "N", value_parser = arguments::tokens, allow_negative_numbers = true)]
    last: Option<usize>,
    /// Print besides the mean of every window of N positions
    #[arg(long, value_name = "N", value_parser = arguments::tokens, allow_negative_numbers = true)]
    every: Option<usize>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    pruning: String,
    /// Tokens used.
    tokens: usize,
    /// All that was scored.
    #[serde(flatten)]
    whole: Window,
    /// Of [`Score::every`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    windows: Vec<Window>,
}

/// Mean over scored tokens that follow each other.
#[derive(Debug, Serialize)]
struct Window {
    /// Position of the first scored token.
    first: usize,
    /// Position of the last.
    last: usize,
    /// Tokens scored.
    scored: usize,
    /// Mean negative log-likelihood, in nats.
    nll: f64,
    /// Its exponential.
    perplexity: f64,
}

impl Score {
    /// Scores the text.
    ///
    /// # Errors
    /// What was refused or failed.
    pub(super) fn run(&self) -> Result<()> {
        let pruning = self.pruning.choose()?;
        let text = self.prompt.read()?;
        let interrupt = interrupt::listen()?;
        let report = self.device.run(Job { arguments: self, pruning, text, interrupt })?;
        output::write(&if self.json { report.json() } else { report.table() })
    }
}

/// A text to score.
struct Job<'a> {
    arguments: &'a Score,
    pruning: pruning::Choice,
    text: String,
    interrupt: &'a Interrupt,
}

impl Work for Job<'_> {
    type Output = Report;

    fn run<D: Device>(self, device: &mut D, settings: Settings) -> Result<Report> {
        let Score { tokens, last, every, .. } = *self.arguments;
        let file = self.arguments.model.open(self.interrupt)?;
        let mut ids = file.tokenizer()?.encode(&self.text, Special::Parse)?;
        ids.truncate(tokens.unwrap_or(usize::MAX));
        let first = ids.len().saturating_sub(last.unwrap_or(usize::MAX)).max(1);
        if first >= ids.len() {
            return Err(Error::NothingToScore { input: self.arguments.prompt.source(), tokens: ids.len() });
        }

        let reserve = Reserve { prompt: ids.len(), new: 0 };
        let (model, plan, chunk) = model::load(&file, self.pruning, reserve, device, settings, self.interrupt)?;
        let name = device.name();
        let extent = Extent { capacity: ids.len(), chunk };
        let mut generation = Generation::new(&model, device, &plan, extent, self.interrupt)?;
        let mut bar = RequestBar::reading(ids.len());
        let mut losses = Vec::with_capacity(ids.len() - first);
        for step in generation.prefill_steps(ids.len())? {
            let start = step.start;
            // The logits of a position score the token after it; the last position has none.
            let scoring = start.max(first - 1)..(start + step.rows).min(ids.len() - 1);
            generation.prefill(step, &ids)?;
            if !scoring.is_empty() {
                generation.logits(scoring.start - start..scoring.end - start, &mut |rows, logits| {
                    let targets = &ids[start + rows.start + 1..start + rows.end + 1];
                    let rows = logits.chunks_exact(logits.len() / targets.len());
                    losses.extend(rows.zip(targets).map(|(logits, target)| negative_log_likelihood(logits, *target)));
                })?;
            }
            bar.show(generation.length(), &mut generation)?;
        }
        bar.clear();

        let windows = every.map_or(Vec::new(), |every| windows(first..ids.len(), every, &losses));
        let whole = Window::new(first, &losses);
        Ok(Report { device: name, pruning: plan.name().to_owned(), tokens: ids.len(), whole, windows })
    }
}

/// `ln Σ exp(logits) − logits[target]`, summed in f64.
fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    largest + sum.ln() - f64::from(logits[target as usize])
}

/// The windows that begin at multiples of `every`, cut to the scored positions.
fn windows(scored: Range<usize>, every: usize, losses: &[f64]) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut first = scored.start;
    while first < scored.end {
        let next = scored.end.min((first / every + 1) * every);
        windows.push(Window::new(first, &losses[first - scored.start..next - scored.start]));
        first = next;
    }
    windows
}

impl Window {
    fn new(first: usize, losses: &[f64]) -> Self {
        let nll = losses.iter().sum::<f64>() / losses.len() as f64;
        Self { first, last: first + losses.len() - 1, scored: losses.len(), nll, perplexity: nll.exp() }
    }
}

impl Report {
    fn json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers and strings have a JSON form") + "\n"
    }

    fn table(&self) -> String {
        let mut table = format!("{:>21}  {:>8}  {:>7}  {:>10}\n", "positions", "scored", "nll", "perplexity");
        for Window { first, last, scored, nll, perplexity } in self.windows.iter().chain([&self.whole]) {
            let positions = format!("{first}..={last}");
            writeln!(table, "{positions:>21}  {scored:>8}  {nll:>7.5}  {perplexity:>10.3}").expect("a string takes it");
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() {
        let nll = negative_log_likelihood(&[1e4; 50], 7);
        assert!((nll - 50_f64.ln()).abs() < 1e-12, "{nll}");
    }

    proptest! {
        #[test]
        fn windows_cover_what_was_scored_once(first in 1_usize..300, length in 1_usize..300, every in 1_usize..200) {
            let losses: Vec<f64> = (0..length).map(|loss| loss as f64).collect();
            let windows = windows(first..first + length, every, &losses);
            prop_assert_eq!(windows.iter().map(|window| window.scored).sum::<usize>(), length);
            prop_assert_eq!(windows[0].first, first);
            for pair in windows.windows(2) {
                prop_assert_eq!(pair[0].last + 1, pair[1].first);
                prop_assert!(pair[1].first.is_multiple_of(every));
            }
            let sum: f64 = windows.iter().map(|window| window.nll * window.scored as f64).sum();
            prop_assert!((sum - losses.iter().sum::<f64>()).abs() < 1e-6);
        }
    }
}
