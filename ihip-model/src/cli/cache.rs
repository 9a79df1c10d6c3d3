//! `ihip cache`: kernels that earlier runs compiled.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use ihip_runtime::jit::cache::{CubinStore, Listed};
use ihip_runtime::jit::{self, JitError};

use super::error::{Error, Result};
use super::output;
use super::table::{NOTHING, Table, bytes, grouped};

/// Digits of a key that a listing shows.
const SHOWN: usize = 12;

/// Shows and clears the cache of compiled kernels
///
/// It is in `cubins` under IHIP_CACHE, else under `ihip` in XDG_CACHE_HOME, else in ~/.cache/ihip.
#[derive(Debug, Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the kernels that are kept, last used first
    List,
    /// Shows everything that is known of one of them
    Show {
        /// The key that `list` shows, or its first digits
        key: String,
    },
    /// Removes all of them, and what killed runs left half-written
    Clear,
}

impl Cache {
    /// Runs the command.
    ///
    /// # Errors
    /// Where the cache may not be used, or a file cannot be removed.
    pub(super) fn run(&self) -> Result<()> {
        let store = jit::store(&jit::cache_folder().ok_or(JitError::NoCacheFolder)?)?;
        match &self.command {
            Command::List => list(&store),
            Command::Show { key } => show(&store, key),
            Command::Clear => {
                let (files, size) = store.clear().map_err(JitError::Store)?;
                output::write(&format!("removed {} files, {}\n", grouped(files), bytes(size as f64)))
            }
        }
    }
}

fn list(store: &CubinStore) -> Result<()> {
    let listed = store.list();
    let mut table = Table::new(["key", "kernel", "arch", "NVRTC", "size", "last used"]);
    let mut damaged = 0;
    for item in &listed {
        let key = item.key.to_string()[..SHOWN].to_owned();
        let (kernel, architecture, nvrtc) = match &item.entry {
            Ok(entry) => (entry.kernel.clone(), entry.architecture.clone(), version(entry.nvrtc)),
            Err(rejection) => {
                damaged += 1;
                (format!("never loaded: {rejection}"), NOTHING.to_owned(), NOTHING.to_owned())
            }
        };
        table.row([key, kernel, architecture, nvrtc, bytes(item.bytes as f64), age(item.used)]);
    }
    let size: u64 = listed.iter().map(|item| item.bytes).sum();
    let mut text = if listed.is_empty() { String::new() } else { format!("{table}\n") };
    let (count, size, room) = (grouped(listed.len()), bytes(size as f64), bytes(jit::STORE_BYTES as f64));
    text.push_str(&format!("{count} kernels, {size} of {room}, in {}\n", store.directory().display()));
    if damaged > 0 {
        text.push_str(&format!("{} of them will be compiled again\n", grouped(damaged)));
    }
    output::write(&text)
}

fn show(store: &CubinStore, key: &str) -> Result<()> {
    let listed = store.list();
    let found: Vec<&Listed> = listed.iter().filter(|item| item.key.to_string().starts_with(key)).collect();
    let [item] = found[..] else {
        return Err(Error::NoSuchEntry { key: key.to_owned(), found: found.len() });
    };
    let mut text = format!("key           {}\n", item.key);
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<14}{value}\n"));
    match &item.entry {
        Ok(entry) => {
            let taken = entry.resources;
            line("kernel", entry.kernel.clone());
            line("architecture", entry.architecture.clone());
            line("NVRTC", version(entry.nvrtc));
            line("registers", taken.registers.to_string());
            line("stack", format!("{} bytes", grouped(taken.stack_bytes as usize)));
            line("spill stores", format!("{} bytes", grouped(taken.spill_store_bytes as usize)));
            line("spill loads", format!("{} bytes", grouped(taken.spill_load_bytes as usize)));
            line("shared", format!("{} bytes", grouped(taken.shared_bytes as usize)));
            line("cubin", format!("{} bytes", grouped(entry.image.len())));
        }
        Err(rejection) => line("never loaded", rejection.to_string()),
    }
    line("last used", age(item.used));
    line("file", store.directory().join(format!("{}.cubin", item.key)).display().to_string());
    output::write(&text)
}

fn version((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// How long ago something was, in its largest unit: `3 h ago`.
fn age(used: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(used).unwrap_or(Duration::ZERO).as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds >= *unit).unwrap_or((1, "s"));
    format!("{} {name} ago", seconds / unit)
}
