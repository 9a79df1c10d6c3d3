//! Progress bars on standard error; nothing where that is not a terminal.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ihip_runtime::Device;
use ihip_runtime::jit::{Progress as Compiling, Watch};
use ihip_runtime::kv::{Placement, Tokens, Traffic};
use indicatif::{ProgressBar, ProgressStyle};

use super::error::Result;
use super::table::{bytes, grouped};
use crate::fetch::Progress;
use crate::generate::Generation;

/// How long a bar says the same.
const TICK: Duration = Duration::from_millis(500);

/// A bar that counts `unit`s up to `length`; its prefix is put behind.
pub(super) fn bar(message: &'static str, length: usize, unit: &str) -> ProgressBar {
    let template = format!("{{msg:10}} [{{bar:32}}] {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left{{prefix}}");
    styled(message, length as u64, &template)
}

/// The bar of a request, which also says what its cache does in two tiers.
#[derive(Debug)]
pub(super) struct RequestBar {
    bar: ProgressBar,
    /// Whether tokens are written; a prompt is read where they are not.
    writes: bool,
    asked: Option<Instant>,
}

impl RequestBar {
    /// While a prompt of so many tokens is read.
    pub(super) fn reading(tokens: usize) -> Self {
        Self { bar: bar("reading", tokens, "tokens"), writes: false, asked: None }
    }

    /// While at most so many tokens are written; nothing where they are read on a terminal, which the bar would share with
    /// them.
    pub(super) fn writing(tokens: usize) -> Self {
        let is_shared = io::stdout().is_terminal();
        let bar = if is_shared { ProgressBar::hidden() } else { bar("writing", tokens, "tokens") };
        Self { bar, writes: true, asked: None }
    }

    /// Shows how many tokens are done.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn show<D: Device>(&mut self, tokens: usize, generation: &mut Generation<'_, D>) -> Result<()> {
        self.bar.set_position(tokens as u64);
        // Asking waits for the device: no more often than it is seen.
        if self.bar.is_hidden() || self.asked.is_some_and(|asked| asked.elapsed() < TICK) {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let traffic = generation.traffic()?;
        let said = if self.writes {
            let Placement { keys, values, .. } = generation.residence()?;
            while_writing(&traffic, keys, values)
        } else {
            while_reading(&traffic)
        };
        self.bar.set_prefix(said);
        Ok(())
    }

    /// Takes it away.
    pub(super) fn clear(self) {
        self.bar.finish_and_clear();
    }
}

/// The share of what was attended to that was on the GPU; nothing where all was.
fn hits(traffic: &Traffic) -> String {
    match traffic.attend.hit_ratio() {
        Some(ratio) if traffic.attend.misses > 0 => {
            format!(", {:.1} % on the GPU, {} read from the host", 100.0 * ratio, bytes(traffic.missed_bytes as f64))
        }
        _ => String::new(),
    }
}

/// What is said while a prompt is read; nothing where all is on the GPU.
fn while_reading(traffic: &Traffic) -> String {
    let streamed = match traffic.streamed_bytes + traffic.promoted_bytes {
        0 => String::new(),
        brought => format!(", {} brought to the GPU", bytes(brought as f64)),
    };
    hits(traffic) + &streamed
}

/// What is said while tokens are written; nothing where all is on the GPU.
fn while_writing(traffic: &Traffic, keys: Tokens, values: Tokens) -> String {
    if keys.host + values.host == 0 {
        return String::new();
    }
    let [here, there] = [[keys.gpu, values.gpu], [keys.host, values.host]]
        .map(|[keys, values]| format!("{} keys and {} values", grouped(keys), grouped(values)));
    format!("{}; {here} on the GPU, {there} on the host", hits(traffic))
}

/// A bar for each time that kernels are compiled, with the name of the one that came last.
pub(super) fn compilation() -> Watch {
    let shown: Mutex<Option<ProgressBar>> = Mutex::new(None);
    Watch::new(move |progress| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Compiling::Begins { kernels } => {
                let template = "{msg:10} [{bar:32}] {pos}/{len} kernels, {prefix}";
                *shown = Some(styled("compiling", kernels as u64, template));
            }
            Compiling::Ready { kernel } => {
                if let Some(bar) = &*shown {
                    bar.set_prefix(kernel.to_owned());
                    bar.inc(1);
                }
            }
            Compiling::Ends => {
                if let Some(bar) = shown.take() {
                    bar.finish_and_clear();
                }
            }
        }
    })
}

/// The bars of a fetch, one after the other.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    message: &'static str,
    bar: Option<ProgressBar>,
}

impl Fetch {
    /// Shows how far it is.
    pub(super) fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Waiting => self.bar("waiting", None).tick(),
            Progress::Downloading { bytes, of } => self.bar("fetching", Some(of)).set_position(bytes),
            Progress::Unpacking { bytes, of } => self.bar("unpacking", Some(of)).set_position(bytes),
        }
    }

    /// Takes the last bar away.
    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The bar of this phase, the one before taken away.
    fn bar(&mut self, message: &'static str, bytes: Option<u64>) -> &ProgressBar {
        if self.message != message {
            self.clear();
            self.message = message;
        }
        self.bar.get_or_insert_with(|| match bytes {
            Some(bytes) => {
                styled(message, bytes, "{msg:10} [{bar:32}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
            }
            None => ProgressBar::new_spinner().with_message("another process is fetching the model"),
        })
    }
}

fn styled(message: &'static str, length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the templates in this file are well formed");
    let bar = ProgressBar::new(length).with_style(style.progress_chars("=> ")).with_message(message);
    // A step may take seconds: the rate and what is left keep moving in between.
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use ihip_runtime::kv::Reads;

    use super::*;

    #[test]
    fn a_bar_says_what_two_tiers_do_and_nothing_of_one() {
        let none = Traffic::default();
        assert_eq!(while_reading(&none), "");
        let all = Tokens { gpu: 4096, host: 0 };
        assert_eq!(while_writing(&none, all, all), "");

        let streamed = Traffic { streamed_bytes: 2_500_000_000, promoted_bytes: 200_000_000, ..none };
        assert_eq!(while_reading(&streamed), ", 2.7 GB brought to the GPU");
        let moved = Traffic { attend: Reads { hits: 790, misses: 210 }, missed_bytes: 1_500_000, ..streamed };
        assert_eq!(while_reading(&moved), ", 79.0 % on the GPU, 1.5 MB read from the host, 2.7 GB brought to the GPU");
        assert_eq!(
            while_writing(&moved, Tokens { gpu: 3000, host: 1096 }, Tokens { gpu: 96, host: 4000 }),
            ", 79.0 % on the GPU, 1.5 MB read from the host; 3,000 keys and 96 values on the GPU, 1,096 keys and 4,000 \
             values on the host"
        );
    }
}
