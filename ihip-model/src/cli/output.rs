//! Standard output: results alone, each piece as soon as it is there.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::error::{Error, Result};

/// Writes `text` to standard output and flushes it.
///
/// # Errors
/// [`Error::ClosedOutput`] where the reader has left, [`Error::Output`] for anything else.
pub(super) fn write(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::ClosedOutput,
        _ => Error::Output(error),
    })
}

/// Ends the line on a terminal, where a prompt would follow the text; what is piped stays the text alone.
///
/// # Errors
/// Those of [`write`].
pub(super) fn end_line() -> Result<()> {
    if io::stdout().is_terminal() { write("\n") } else { Ok(()) }
}

/// Says on standard error what did not go well while the command goes on.
pub(super) fn complain(message: &str) {
    say(&format!("error: {message}"));
}

/// Says on standard error what whoever gave the command should know though it does what it was asked for.
pub(super) fn note(message: &str) {
    say(&format!("note: {message}"));
}

/// Writes a line to standard error; nobody may be there to hear it.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Makes sure that `path` can be written before anything is measured for it, and leaves it as it is.
///
/// # Errors
/// [`Error::Write`].
pub(super) fn writable(path: &Path) -> Result<()> {
    if path.is_dir() || !path.exists() {
        return beside(path).map(drop);
    }
    let opened = File::options().append(true).open(path);
    opened.map(drop).map_err(|source| Error::Write { path: path.into(), source })
}

/// A file that takes the place of `path` once all of it is written; made before anything is computed.
///
/// # Errors
/// [`Error::Write`].
pub(super) fn beside(path: &Path) -> Result<NamedTempFile> {
    let failed = |source| Error::Write { path: path.into(), source };
    if path.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    std::fs::metadata(folder).map_err(failed)?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(failed)
}
