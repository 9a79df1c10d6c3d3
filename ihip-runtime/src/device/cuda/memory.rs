//! Device memory: allocations, copied in the order of one stream.

use std::sync::Arc;

use bytemuck::{Pod, zeroed_vec};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdeviceptr, CUresult};
use cudarc::driver::{CudaStream, DriverError};

use super::allocation::Allocation;
use super::ledger::{Stream, Taken};
use super::mapping::{Mapping, divided};
use super::pinned::Pinned;
use crate::kv::Tier;
use crate::{Error, Result};

/// An allocation. Shared, because a recorded graph keeps every buffer alive that it names.
///
/// cudarc's own slices are not used: they record events for the case that several streams touch them, which one
/// stream never needs and a captured graph must not contain.
#[derive(Debug)]
pub(super) struct Buffer {
    address: CUdeviceptr,
    bytes: usize,
    /// Where part of it is the host's.
    mapping: Option<Mapping>,
    /// What a buffer that is no mapping has taken.
    _taken: Option<Taken>,
    stream: Stream,
}

impl Buffer {
    /// Allocates `bytes` for `what`, zeroed where asked.
    pub(super) fn new(stream: &Stream, what: &str, bytes: usize, zeroed: bool) -> Result<Arc<Self>> {
        let context = stream.context();
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        // An empty allocation is an error to the driver; a buffer that nothing is read from still needs an address.
        let bytes = bytes.max(1);
        let allocated = Taken::new(&stream.ledger, Tier::Gpu, bytes).and_then(|taken| {
            // SAFETY: the context is current and the size is not zero.
            Ok((unsafe { result::malloc_sync(bytes) }?, taken))
        });
        let (address, taken) = allocated.map_err(|error| {
            if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                let available = context.mem_get_info().map_or(0, |(free, _)| free as u64);
                let device = format!("cuda:{}", context.ordinal());
                Error::OutOfMemory { what: what.to_owned(), device, needed: bytes as u64, available }
            } else {
                failed("cuMemAlloc")(error)
            }
        })?;
        let buffer = Self { address, bytes, mapping: None, _taken: Some(taken), stream: stream.clone() };
        if zeroed {
            // SAFETY: the allocation above is `bytes` long.
            unsafe { result::memset_d8_async(address, 0, bytes, stream.cu_stream()) }
                .map_err(failed("cuMemsetD8Async"))?;
        }
        Ok(Arc::new(buffer))
    }

    /// Allocates `bytes` for `what`, the first `on_gpu` of them on the GPU and the rest in `pinned` memory of the host, one
    /// allocation of [so many](Self::with_host) bytes.
    pub(super) fn tiered(
        stream: &Stream,
        what: &str,
        [on_gpu, bytes]: [usize; 2],
        pinned: &mut Pinned<'_, Allocation>,
    ) -> Result<Arc<Self>> {
        if on_gpu >= bytes {
            return Self::new(stream, what, bytes, false);
        }
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let [gpu, host] = divided(stream.context(), on_gpu, bytes)?;
        let mut parts = vec![Allocation::new(stream, Tier::Gpu, what, gpu)?];
        if host > 0 {
            parts.push(pinned.take(host)?);
        }
        Ok(Self::mapped(stream, Mapping::new(stream.context(), parts)?, bytes))
    }

    /// Bytes of the host's memory that [`Self::tiered`] takes, 0 where all is on the GPU.
    pub(super) fn with_host(stream: &Stream, [on_gpu, bytes]: [usize; 2]) -> Result<usize> {
        if on_gpu >= bytes {
            return Ok(0);
        }
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let [_, host] = divided(stream.context(), on_gpu, bytes)?;
        Ok(host)
    }

    /// Room on the GPU for copies of `bytes`, to be seen through [`Self::joined`]; `None` for nothing.
    pub(super) fn staging(stream: &Stream, what: &str, bytes: usize) -> Result<Option<Arc<Self>>> {
        if bytes == 0 {
            return Ok(None);
        }
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let [gpu, _] = divided(stream.context(), bytes, bytes)?;
        let parts = vec![Allocation::new(stream, Tier::Gpu, what, gpu)?];
        Ok(Some(Self::mapped(stream, Mapping::new(stream.context(), parts)?, bytes)))
    }

    fn mapped(stream: &Stream, mapping: Mapping, bytes: usize) -> Arc<Self> {
        let address = mapping.address();
        Arc::new(Self { address, bytes, mapping: Some(mapping), _taken: None, stream: stream.clone() })
    }

    /// The part of `home` on the GPU, and behind it `staging` in place of what the host has.
    pub(super) fn joined(stream: &Stream, home: &Self, staging: &Self) -> Result<Arc<Self>> {
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let parts = home.mapping.as_ref().zip(staging.mapping.as_ref());
        let (first, second) = parts.expect("both are ranges of mapped memory");
        Ok(Self::mapped(stream, Mapping::joined(first, second)?, home.bytes))
    }

    /// Bytes of it.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first bytes that are on the GPU: all of them, unless the host has some.
    pub(super) fn on_gpu(&self) -> usize {
        self.mapping.as_ref().map_or(self.bytes, |mapping| mapping.on_gpu().min(self.bytes))
    }

    /// Copies `length` bytes to the same place of `to`, in the order of the stream `on`.
    pub(super) fn copy_to(&self, to: &Self, offset: usize, length: usize, on: &CudaStream) -> Result<()> {
        self.check(offset + length, "copied");
        to.check(offset + length, "written");
        let at = |buffer: &Self| buffer.address + offset as CUdeviceptr;
        // SAFETY: both are long enough, and the GPU may read and write either.
        unsafe { sys::cuMemcpyAsync(at(to), at(self), length, on.cu_stream()) }
            .result()
            .map_err(failed("cuMemcpyAsync"))
    }

    /// Allocates and fills a buffer.
    pub(super) fn with<T: Pod>(stream: &Stream, what: &str, values: &[T]) -> Result<Arc<Self>> {
        let buffer = Self::new(stream, what, size_of_val(values), false)?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Where it begins.
    pub(super) const fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Replaces what is there from byte `offset` on.
    pub(super) fn write<T: Pod>(&self, offset: usize, values: &[T]) -> Result<()> {
        self.check(offset + size_of_val(values), "written");
        self.stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the destination is long enough. The source is pageable memory, which the driver copies to a buffer
        // of its own before it returns.
        unsafe { result::memcpy_htod_async(self.address + offset as CUdeviceptr, values, self.stream.cu_stream()) }
            .map_err(failed("cuMemcpyHtoDAsync"))
    }

    /// `count` elements from byte `offset` on, once everything launched before has run.
    pub(super) fn read<T: Pod>(&self, offset: usize, count: usize) -> Result<Vec<T>> {
        self.check(offset + count * size_of::<T>(), "read");
        self.stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let mut values = zeroed_vec(count);
        // SAFETY: source and destination are long enough, and the destination lives until the stream is idle.
        unsafe {
            result::memcpy_dtoh_async(&mut values, self.address + offset as CUdeviceptr, self.stream.cu_stream())
        }
        .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))?;
        Ok(values)
    }

    fn check(&self, bytes: usize, what: &str) {
        assert!(bytes <= self.bytes, "up to byte {bytes} {what} of a buffer of {}", self.bytes);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        match &self.mapping {
            // Unmapping does not wait for the work that uses the memory, pages that still move on another stream among it.
            Some(_) => context.record_err(context.synchronize()),
            // SAFETY: freed once, and the driver waits for the work that uses it.
            None => context.record_err(unsafe { result::free_sync(self.address) }),
        }
    }
}

/// Wraps the error of a driver call.
pub(super) const fn failed(call: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |source| Error::Cuda { call, source }
}
