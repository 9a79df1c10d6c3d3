//! Opening a GPU. What is missing is an error with its reason: cudarc panics where a library is.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, DriverError, sys};

use super::memory::failed;
use crate::{Error, Result, jit};

/// Oldest driver interface that the calls in use are all in: CUDA 12.0.
const OLDEST: i32 = 12_000;

/// Names of cuBLASLt, the newest first.
const CUBLASLT: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// The context of GPU `ordinal`.
///
/// # Errors
/// [`Error::NoSuchDevice`] where there is no driver or no such GPU, [`Error::UnusableDevice`] for anything else.
pub(super) fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    let missing = |reason: String| Error::NoSuchDevice { name: format!("cuda:{ordinal}"), reason };
    let unusable = |reason: String| Error::UnusableDevice { name: format!("cuda:{ordinal}"), reason };
    let refused = |error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            missing("the driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES".to_owned())
        }
        _ => unusable(format!("the driver says {error}")),
    };
    // SAFETY: opening a library of that name runs NVIDIA's initialisers, which have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        let reason = "libcuda, which the NVIDIA driver installs, is not on the loader's path";
        return Err(missing(reason.to_owned()));
    }
    let version = version().map_err(refused)?;
    if version < OLDEST {
        let (major, minor) = numbers(version);
        return Err(unusable(format!("the driver is of CUDA {major}.{minor}: install one of CUDA 12.0 or later")));
    }
    let count = CudaContext::device_count().map_err(refused)?;
    if ordinal >= count.unsigned_abs() as usize {
        return Err(missing(format!("the driver sees {count} GPUs, counted from 0")));
    }
    cublaslt().map_err(unusable)?;
    CudaContext::new(ordinal).map_err(refused)
}

/// Fails where the driver's interface is older than `oldest`.
///
/// # Errors
/// [`Error::OldDriver`].
pub(super) fn since(oldest: i32) -> Result<()> {
    let version = version().map_err(failed("cuDriverGetVersion"))?;
    if version >= oldest {
        Ok(())
    } else {
        Err(Error::OldDriver { version: numbers(version), oldest: numbers(oldest) })
    }
}

/// The driver's interface, 1000 times the major version of CUDA and 10 times the minor one.
fn version() -> std::result::Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: whoever asks has seen that the library is there, and the pointer is valid for one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map(|()| version)
}

const fn numbers(version: i32) -> (i32, i32) {
    (version / 1000, version % 1000 / 10)
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
