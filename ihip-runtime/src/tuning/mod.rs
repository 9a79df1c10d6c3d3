//! Launch tuning: which of the choices that kernels leave open are fastest on a GPU.
//!
//! ```text
//! Program::tunable ─► candidates ─► compiled, checked against the reference, timed ─► TrialStore ─► Table
//!                                                                                 Table ─► Tunings of a program
//! ```
//!
//! A candidate is timed only once it computes what the reference does; one that does not is kept with the reason. Runs
//! read a [`Table`] and time nothing. A GPU that no table is for runs every kernel as its family declares it: those
//! defaults were chosen on an H200 and are right everywhere.

mod gate;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod tuner;

pub use gate::{Case, Gate, Mistake, StepOutcome};
pub use store::{Outcome, Rejection, Trial, TrialStore};
pub use table::{Choice, Machine, Table, TableError, Tables, user_table};
pub use tuner::{Bench, MARGIN, Origin, Tuned, Tuner, share};
