//! Who is asked before memory is allocated, so that what is held can be counted, and any allocation made to fail.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaStream, DriverError};

use crate::kv::Tier;

/// Is asked before the driver is, and told when memory is given back.
pub trait Ledger: fmt::Debug + Send + Sync {
    /// Whether so many bytes of a tier may be allocated: device memory, or pinned memory of the host.
    fn take(&self, tier: Tier, bytes: u64) -> bool;

    /// Bytes that were taken are given back.
    fn give_back(&self, tier: Tier, bytes: u64);
}

/// Leaves everything to the driver.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Driver;

impl Ledger for Driver {
    fn take(&self, _tier: Tier, _bytes: u64) -> bool {
        true
    }

    fn give_back(&self, _tier: Tier, _bytes: u64) {}
}

/// A stream, and who is asked for the memory of what runs on it.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    stream: Arc<CudaStream>,
    pub(super) ledger: Arc<dyn Ledger>,
}

impl Stream {
    /// Asks nobody but the driver.
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, ledger: Arc::new(Driver) }
    }

    /// Another stream of the same ledger.
    pub(super) fn beside(&self, stream: Arc<CudaStream>) -> Self {
        Self { stream, ledger: self.ledger.clone() }
    }
}

impl Deref for Stream {
    type Target = Arc<CudaStream>;

    fn deref(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// Bytes that were taken, until they are dropped.
#[derive(Debug)]
pub(super) struct Taken {
    ledger: Arc<dyn Ledger>,
    tier: Tier,
    bytes: u64,
}

impl Taken {
    /// Asks for so many bytes; where they are refused, it is as if the driver had said that there are none.
    pub(super) fn new(ledger: &Arc<dyn Ledger>, tier: Tier, bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes as u64;
        if ledger.take(tier, bytes) {
            Ok(Self { ledger: ledger.clone(), tier, bytes })
        } else {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY))
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.ledger.give_back(self.tier, self.bytes);
    }
}
