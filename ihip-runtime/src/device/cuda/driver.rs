//! Opening a GPU. What is missing is an error with its reason: cudarc panics where a library is.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, DriverError, sys};

use crate::{Error, Result, jit};

/// Oldest driver interface that the calls in use are all in: CUDA 12.0.
const OLDEST: i32 = 12_000;

/// Names of cuBLASLt, the newest first.
const CUBLASLT: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// The context of GPU `ordinal`.
pub(super) fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    let missing = |reason: String| Error::NoSuchDevice { name: format!("cuda:{ordinal}"), reason };
    let describe = |error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "the driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES".to_owned()
        }
        _ => format!("the driver says {error}"),
    };
    // SAFETY: opening a library of that name runs NVIDIA's initialisers, which have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        let reason = "libcuda, which the NVIDIA driver installs, is not on the loader's path: use --device cpu";
        return Err(missing(reason.to_owned()));
    }
    let mut version = 0;
    // SAFETY: the library is there, and the pointer is valid for one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|error| missing(describe(error)))?;
    if version < OLDEST {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(missing(format!("the driver is of CUDA {major}.{minor}: install one of CUDA 12.0 or later")));
    }
    let count = CudaContext::device_count().map_err(|error| missing(describe(error)))?;
    if ordinal >= count.unsigned_abs() as usize {
        return Err(missing(format!("the driver sees {count} GPUs, counted from 0")));
    }
    cublaslt().map_err(missing)?;
    CudaContext::new(ordinal).map_err(|error| missing(describe(error)))
}

/// Makes sure that cudarc will find cuBLASLt, whose list of names only covers the loader's path: once the library is
/// loaded by its path, the loader answers its name with it.
fn cublaslt() -> std::result::Result<(), String> {
    // SAFETY: opening a library of that name runs NVIDIA's initialisers, which have no preconditions.
    let present = || unsafe { cudarc::cublaslt::sys::is_culib_present() };
    if present() {
        return Ok(());
    }
    let mut looked_in = Vec::new();
    for folder in jit::library_folders() {
        for file in CUBLASLT.map(|name| folder.join(name)) {
            if file.is_file() && jit::preload(&file) && present() {
                return Ok(());
            }
        }
        looked_in.push(folder.display().to_string());
    }
    Err(format!(
        "cuBLASLt is missing: none of {} is on the loader's path or in {}; install CUDA 12 or 13 or `pip install nvidia-cublas`",
        CUBLASLT.join(", "),
        looked_in.join(", ")
    ))
}
