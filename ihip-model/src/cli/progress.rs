//! Progress bars on standard error; nothing where that is not a terminal.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ihip_runtime::jit::{Progress as Compiling, Watch};
use indicatif::{ProgressBar, ProgressStyle};

use crate::fetch::Progress;

/// A bar that counts `unit`s up to `length`; its prefix is put behind.
pub(super) fn bar(message: &'static str, length: usize, unit: &str) -> ProgressBar {
    let template = format!("{{msg:10}} [{{bar:32}}] {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left{{prefix}}");
    styled(message, length as u64, &template)
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
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
