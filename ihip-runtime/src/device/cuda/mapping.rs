//! One range of addresses over two memories: the GPU's first, pinned memory of the host behind it.
//!
//! Kernels read and write the host's part in place, over the bus. Where a page lies is a matter of its number in the page
//! table alone: the kernels' text does not know of it. These are plain allocations behind CUDA's virtual memory
//! management, no managed memory: nothing moves by itself.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemLocation, CUmemLocationType};

use super::allocation::{Allocation, granularity};
use super::memory::failed;
use crate::Result;

/// A range of addresses and the memory behind it, both given back when it is dropped: nothing uses them any more then.
#[derive(Debug)]
pub(super) struct Mapping {
    address: CUdeviceptr,
    /// Of the whole range.
    bytes: usize,
    /// What is mapped, in order from the range's start.
    parts: Vec<Allocation>,
    context: Arc<CudaContext>,
}

impl Mapping {
    /// Maps a range to `parts`, one behind the other, and lets the GPU read and write it. The context is current.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn new(context: &Arc<CudaContext>, parts: Vec<Allocation>) -> Result<Self> {
        let bytes = parts.iter().map(Allocation::bytes).sum();
        let mut address = 0;
        // SAFETY: the result is written to a place that lives until the call returns.
        unsafe { sys::cuMemAddressReserve(&raw mut address, bytes, granularity(context)?, 0, 0) }
            .result()
            .map_err(failed("cuMemAddressReserve"))?;
        let mut mapping = Self { address, bytes, parts: Vec::new(), context: context.clone() };
        parts.into_iter().try_for_each(|part| mapping.push(part))?;
        mapping.allow()?;
        Ok(mapping)
    }

    /// A second range over the GPU's memory of `first`, and behind it that of `second`, which both stay as long as any
    /// range has them. The context is current.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn joined(first: &Self, second: &Self) -> Result<Self> {
        let context = &first.context;
        let parts = [first, second].map(|mapping| Allocation::retained(context, mapping.address, mapping.on_gpu()));
        Self::new(context, parts.into_iter().collect::<Result<_>>()?)
    }

    /// Bytes of it that are on the GPU.
    pub(super) fn on_gpu(&self) -> usize {
        self.parts.first().map_or(0, Allocation::bytes)
    }

    /// Where the range begins.
    pub(super) const fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Maps an allocation behind what is mapped already.
    fn push(&mut self, part: Allocation) -> Result<()> {
        let mapped: usize = self.parts.iter().map(Allocation::bytes).sum();
        let address = self.address + mapped as CUdeviceptr;
        // SAFETY: the range is reserved, nothing is mapped there yet, and all of the allocation is mapped.
        unsafe { sys::cuMemMap(address, part.bytes(), 0, part.handle(), 0) }.result().map_err(failed("cuMemMap"))?;
        self.parts.push(part);
        Ok(())
    }

    /// Lets the GPU read and write the whole range.
    fn allow(&self) -> Result<()> {
        let type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        let location = CUmemLocation { type_, id: self.context.ordinal() as i32 };
        let access = CUmemAccessDesc { location, flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        // SAFETY: the whole range is mapped.
        unsafe { sys::cuMemSetAccess(self.address, self.bytes, &raw const access, 1) }
            .result()
            .map_err(failed("cuMemSetAccess"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut address = self.address;
        for part in self.parts.drain(..) {
            // SAFETY: mapped exactly so by `push`.
            self.context.record_err(unsafe { sys::cuMemUnmap(address, part.bytes()) }.result());
            address += part.bytes() as CUdeviceptr;
        }
        // SAFETY: reserved with these numbers by `new`, and nothing is mapped there any more.
        self.context.record_err(unsafe { sys::cuMemAddressFree(self.address, self.bytes) }.result());
    }
}

/// Bytes of the GPU's memory and of the host's for a range of at least `bytes`, at least `on_gpu` of them on the GPU. The
/// context is current.
///
/// # Errors
/// Those of the driver.
pub(super) fn divided(context: &CudaContext, on_gpu: usize, bytes: usize) -> Result<[usize; 2]> {
    let granularity = granularity(context)?;
    let [gpu, all] = [on_gpu.min(bytes), bytes].map(|bytes| bytes.next_multiple_of(granularity));
    Ok([gpu, all - gpu])
}
