//! One range of addresses over two memories: the GPU's first, pinned memory of the host behind it.
//!
//! Kernels read and write the host's part in place, over the bus. Where a page lies is a matter of its number in the page
//! table alone: the kernels' text does not know of it. These are plain allocations behind CUDA's virtual memory
//! management, no managed memory: nothing moves by itself.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags, CUmemAllocationHandleType,
    CUmemAllocationProp, CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType, CUmemGenericAllocationHandle,
    CUmemLocation, CUmemLocationType, CUresult,
};

use super::ledger::{Ledger, Stream, Taken};
use super::memory::failed;
use crate::device::cpu::available_bytes;
use crate::kv::Tier;
use crate::{Error, Result};

/// A range of addresses and the memory behind it.
#[derive(Debug)]
pub(super) struct Mapping {
    address: CUdeviceptr,
    /// Of the whole range.
    bytes: usize,
    /// The memories in order.
    parts: Vec<Part>,
}

/// One memory of a range.
#[derive(Debug)]
struct Part {
    handle: CUmemGenericAllocationHandle,
    bytes: usize,
    /// Nothing where it is another range's as well, which has taken it.
    _taken: Option<Taken>,
}

impl Mapping {
    /// Maps at least `bytes`, the first of them, at least `on_gpu`, to memory of the stream's GPU and the rest to the
    /// host's. The stream's context is current.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] of the memory that has not that much, and those of the driver.
    pub(super) fn new(stream: &Stream, what: &str, on_gpu: usize, bytes: usize) -> Result<Self> {
        let context = stream.context();
        let ordinal = context.ordinal();
        let gpu = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: ordinal as i32 };
        let host = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST_NUMA, id: 0 };
        let granularity = granularity(gpu)?.max(granularity(host)?);
        let on_gpu = on_gpu.min(bytes).next_multiple_of(granularity);
        let bytes = bytes.next_multiple_of(granularity).max(on_gpu);
        let mut mapping = Self { address: 0, bytes, parts: Vec::new() };
        // SAFETY: the result is written to a place that lives until the call returns.
        unsafe { sys::cuMemAddressReserve(&raw mut mapping.address, bytes, granularity, 0, 0) }
            .result()
            .map_err(failed("cuMemAddressReserve"))?;
        match mapping.fill(stream, what, [(gpu, on_gpu), (host, bytes - on_gpu)]) {
            Ok(()) => Ok(mapping),
            Err(error) => {
                mapping.release(context);
                Err(error)
            }
        }
    }

    /// A second range over the GPU's memory of `first`, and behind it that of `second`, which both stay as long as any
    /// range has them. The context is current.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn joined(context: &CudaContext, first: &Self, second: &Self) -> Result<Self> {
        let gpu = first.on_gpu();
        let mut joined = Self { address: 0, bytes: gpu + second.on_gpu(), parts: Vec::new() };
        // SAFETY: the result is written to a place that lives until the call returns.
        unsafe { sys::cuMemAddressReserve(&raw mut joined.address, joined.bytes, 0, 0, 0) }
            .result()
            .map_err(failed("cuMemAddressReserve"))?;
        let mapped = [first, second].into_iter().try_for_each(|mapping| {
            let mut handle = 0;
            // SAFETY: something is mapped where the range begins, and the result lives until the call returns.
            unsafe { sys::cuMemRetainAllocationHandle(&raw mut handle, mapping.address as *mut c_void) }
                .result()
                .map_err(failed("cuMemRetainAllocationHandle"))?;
            joined.map(handle, mapping.on_gpu(), None)
        });
        match mapped.and_then(|()| joined.allow(context)) {
            Ok(()) => Ok(joined),
            Err(error) => {
                joined.release(context);
                Err(error)
            }
        }
    }

    /// Bytes of it that are on the GPU.
    pub(super) fn on_gpu(&self) -> usize {
        self.parts.first().map_or(0, |part| part.bytes)
    }

    /// Maps bytes of each memory in order, and lets the GPU read and write them.
    fn fill(&mut self, stream: &Stream, what: &str, memories: [(CUmemLocation, usize); 2]) -> Result<()> {
        let context = stream.context();
        let [(gpu, _), _] = memories;
        for (location, bytes) in memories.into_iter().filter(|(_, bytes)| *bytes > 0) {
            let tier = if location == gpu { Tier::Gpu } else { Tier::Host };
            self.push(&stream.ledger, (tier, location), bytes).map_err(|error| match error {
                Error::Cuda { source, .. } if source.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    let (device, available) = if tier == Tier::Gpu {
                        let free = context.mem_get_info().map_or(0, |(free, _)| free as u64);
                        (format!("cuda:{}", context.ordinal()), free)
                    } else {
                        ("the host".to_owned(), available_bytes().unwrap_or(0))
                    };
                    Error::OutOfMemory { what: what.to_owned(), device, needed: bytes as u64, available }
                }
                error => error,
            })?;
        }
        self.allow(context)
    }

    /// Lets the GPU read and write the whole range.
    fn allow(&self, context: &CudaContext) -> Result<()> {
        let type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        let location = CUmemLocation { type_, id: context.ordinal() as i32 };
        let access = CUmemAccessDesc { location, flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        // SAFETY: the whole range is mapped.
        unsafe { sys::cuMemSetAccess(self.address, self.bytes, &raw const access, 1) }
            .result()
            .map_err(failed("cuMemSetAccess"))
    }

    /// Where the range begins.
    pub(super) const fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Allocates `bytes` at `location` and maps them behind what is mapped already.
    fn push(&mut self, ledger: &Arc<dyn Ledger>, (tier, location): (Tier, CUmemLocation), bytes: usize) -> Result<()> {
        let taken = Taken::new(ledger, tier, bytes).map_err(failed("cuMemCreate"))?;
        let mut handle = 0;
        // SAFETY: `bytes` is a multiple of the granularity, and the result lives until the call returns.
        unsafe { sys::cuMemCreate(&raw mut handle, bytes, &properties(location), 0) }
            .result()
            .map_err(failed("cuMemCreate"))?;
        self.map(handle, bytes, Some(taken))
    }

    /// Maps an allocation of `bytes` behind what is mapped already; it is given back with the range, or at once where
    /// that fails.
    fn map(&mut self, handle: CUmemGenericAllocationHandle, bytes: usize, taken: Option<Taken>) -> Result<()> {
        let mapped: usize = self.parts.iter().map(|part| part.bytes).sum();
        // SAFETY: the range is reserved and nothing is mapped there yet.
        let outcome = unsafe { sys::cuMemMap(self.address + mapped as CUdeviceptr, bytes, 0, handle, 0) }.result();
        if outcome.is_err() {
            // SAFETY: nothing uses the allocation.
            unsafe { sys::cuMemRelease(handle) }.result().map_err(failed("cuMemRelease"))?;
        }
        outcome.map_err(failed("cuMemMap"))?;
        self.parts.push(Part { handle, bytes, _taken: taken });
        Ok(())
    }

    /// Gives memory and addresses back. The context is current, and nothing uses them any more.
    pub(super) fn release(&mut self, context: &CudaContext) {
        let mut address = self.address;
        for Part { handle, bytes, _taken: taken } in self.parts.drain(..) {
            // SAFETY: mapped exactly so by `push`, and released once.
            context.record_err(unsafe { sys::cuMemUnmap(address, bytes) }.result());
            // SAFETY: as above.
            context.record_err(unsafe { sys::cuMemRelease(handle) }.result());
            drop(taken);
            address += bytes as CUdeviceptr;
        }
        // SAFETY: reserved with these numbers by `new`, and nothing is mapped there any more.
        context.record_err(unsafe { sys::cuMemAddressFree(self.address, self.bytes) }.result());
    }
}

const fn properties(location: CUmemLocation) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CUmemAllocationHandleType(0),
        location,
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// What sizes and offsets of memory at `location` are multiples of.
fn granularity(location: CUmemLocation) -> Result<usize> {
    let mut bytes = 0;
    let least = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    // SAFETY: the result is written to a place that lives until the call returns.
    unsafe { sys::cuMemGetAllocationGranularity(&raw mut bytes, &properties(location), least) }
        .result()
        .map_err(failed("cuMemGetAllocationGranularity"))?;
    Ok(bytes)
}
