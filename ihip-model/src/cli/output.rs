//! Standard output: results alone, each piece as soon as it is there.

use std::io::{self, IsTerminal, Write};

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

/// Says on standard error what did not go well while the command goes on; nobody may be there to hear it.
pub(super) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "error: {message}");
}
