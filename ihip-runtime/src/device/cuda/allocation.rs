//! Memory without an address: what ranges of addresses are mapped to.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemAllocationGranularity_flags, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType, CUmemGenericAllocationHandle, CUmemLocation,
    CUmemLocationType, CUresult,
};

use super::driver;
use super::ledger::{Stream, Taken};
use super::memory::failed;
use crate::device::cpu::available_bytes;
use crate::kv::Tier;
use crate::{Error, Result};

/// Oldest driver interface that allocates memory of a node of the host: CUDA 12.2.
const OLDEST: i32 = 12_020;

/// Memory of the GPU, or pinned memory of the host; given back when it is dropped, which is after what maps it.
#[derive(Debug)]
pub(super) struct Allocation {
    handle: CUmemGenericAllocationHandle,
    bytes: usize,
    context: Arc<CudaContext>,
    /// Nothing where it is another allocation's as well, which has taken it.
    _taken: Option<Taken>,
}

impl Allocation {
    /// Allocates `bytes`, a multiple of the [granularity], for `what`; the memory is there when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and those of the driver.
    pub(super) fn new(stream: &Stream, tier: Tier, what: &str, bytes: usize) -> Result<Self> {
        let context = stream.context();
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let created = Taken::new(&stream.ledger, tier, bytes).and_then(|taken| {
            let mut handle = 0;
            // SAFETY: the result is written to a place that lives until the call returns.
            unsafe { sys::cuMemCreate(&raw mut handle, bytes, &properties(context, tier), 0) }.result()?;
            Ok(Self { handle, bytes, context: context.clone(), _taken: Some(taken) })
        });
        created.map_err(|error| {
            if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return failed("cuMemCreate")(error);
            }
            let (device, available) = match tier {
                Tier::Gpu => {
                    let free = context.mem_get_info().map_or(0, |(free, _)| free as u64);
                    (format!("cuda:{}", context.ordinal()), free)
                }
                Tier::Host => ("the host".to_owned(), available_bytes().unwrap_or(0)),
            };
            Error::OutOfMemory { what: what.to_owned(), device, needed: bytes as u64, available }
        })
    }

    /// What is mapped at `address`, `bytes` of it, once more: it stays until both are dropped.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn retained(context: &Arc<CudaContext>, address: CUdeviceptr, bytes: usize) -> Result<Self> {
        let mut handle = 0;
        // SAFETY: something is mapped there, and the result lives until the call returns.
        unsafe { sys::cuMemRetainAllocationHandle(&raw mut handle, address as *mut c_void) }
            .result()
            .map_err(failed("cuMemRetainAllocationHandle"))?;
        Ok(Self { handle, bytes, context: context.clone(), _taken: None })
    }

    /// What the driver calls it.
    pub(super) const fn handle(&self) -> CUmemGenericAllocationHandle {
        self.handle
    }

    /// Bytes of it.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: created or retained once, and released once.
        self.context.record_err(unsafe { sys::cuMemRelease(self.handle) }.result());
    }
}

/// What sizes of allocations, and where they are mapped, are multiples of. The context is current.
///
/// # Errors
/// [`Error::OldDriver`] before the first that allocates memory of a node of the host, and those of the driver.
pub(super) fn granularity(context: &CudaContext) -> Result<usize> {
    driver::since(OLDEST)?;
    let least = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    [Tier::Gpu, Tier::Host].into_iter().try_fold(1, |most: usize, tier| {
        let mut bytes = 0;
        // SAFETY: the result is written to a place that lives until the call returns.
        unsafe { sys::cuMemGetAllocationGranularity(&raw mut bytes, &properties(context, tier), least) }
            .result()
            .map_err(failed("cuMemGetAllocationGranularity"))?;
        Ok(most.max(bytes))
    })
}

fn properties(context: &CudaContext, tier: Tier) -> CUmemAllocationProp {
    let location = match tier {
        Tier::Gpu => {
            let type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            CUmemLocation { type_, id: context.ordinal() as i32 }
        }
        Tier::Host => CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST_NUMA, id: 0 },
    };
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
