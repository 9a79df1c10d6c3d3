//! Progress bars on standard error; nothing where that is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts `unit`s up to `length`.
pub(super) fn bar(what: &'static str, length: usize, unit: &str) -> ProgressBar {
    let template = format!("{{msg:10}} [{{bar:32}}] {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
    styled(what, length as u64, &template)
}

/// A bar that counts bytes up to `length`.
pub(super) fn byte_bar(what: &'static str, length: u64) -> ProgressBar {
    styled(what, length, "{msg:10} [{bar:32}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
}

fn styled(what: &'static str, length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is one of two, both well formed");
    let bar = ProgressBar::new(length).with_style(style.progress_chars("=> "));
    bar.set_message(what);
    bar
}
