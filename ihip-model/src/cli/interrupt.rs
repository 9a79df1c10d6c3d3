//! Ctrl-C.

use std::process;

use super::error::{INTERRUPTED, Result};
use crate::generate::Interrupt;

static INTERRUPT: Interrupt = Interrupt::new();

/// From now on Ctrl-C raises the flag that comes back, and a second one ends the process at once.
///
/// # Errors
/// Where the system refuses the handler.
pub(super) fn listen() -> Result<&'static Interrupt> {
    ctrlc::set_handler(|| {
        if INTERRUPT.check().is_err() {
            process::exit(i32::from(INTERRUPTED));
        }
        INTERRUPT.raise();
    })?;
    Ok(&INTERRUPT)
}
