//! Ctrl-C.

use std::process;

use super::error::Result;
use crate::generate::Interrupt;

static INTERRUPT: Interrupt = Interrupt::new();

/// From now on Ctrl-C raises the flag that comes back, and a second one ends the process at once.
///
/// # Errors
/// Where the system refuses the handler.
pub(super) fn listen() -> Result<&'static Interrupt> {
    ctrlc::set_handler(|| {
        if INTERRUPT.check().is_err() {
            process::exit(130);
        }
        INTERRUPT.raise();
    })?;
    Ok(&INTERRUPT)
}
