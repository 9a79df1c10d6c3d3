//! Standard output: results alone, each piece as soon as it is there.

use std::io::{self, Write};

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
