//! Runs a [`ihip_dsl::Plan`]: devices, key-value cache, refresh schedule.
//!
//! A model is written once against [`Device`]; a [`Session`] says, step by step, which positions are computed and
//! from which stage their masks are renewed.

pub mod device;
mod error;
pub mod jit;
pub mod kv;
pub mod session;
pub mod tuning;

pub use device::Device;
pub use error::{Error, Result};
pub use session::{Session, Step};
