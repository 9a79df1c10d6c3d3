//! Matrix products through cuBLASLt, with an algorithm that does not change with the number of rows.
//!
//! A row's result may depend on the algorithm: tiles and splits of the sum differ. For each shape of weights one
//! algorithm is chosen for single rows (decoding, and the last row's logits) and one for all larger numbers of rows,
//! so that how a prompt is cut into chunks does not show in its result. f32 products are true f32: no TF32.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUdeviceptr;
use ihip_dsl::emit::Activation;

use super::ledger::Stream;
use super::memory::Buffer;
use crate::{Error, Result};

/// Memory for algorithms that split a sum: what the library's documentation advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Rows for which the algorithm for many rows is chosen.
const TYPICAL_ROWS: u64 = 1024;

/// Weights `[outputs, inputs]`, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// What an algorithm was chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    shape: Shape,
    single_row: bool,
}

/// The library's handle, and the algorithms chosen so far.
#[derive(Debug)]
pub(super) struct Products {
    handle: Handle,
    description: Description,
    element: sys::cudaDataType,
    element_bytes: usize,
    workspace: Arc<Buffer>,
    algorithms: HashMap<Bucket, sys::cublasLtMatmulAlgo_t>,
}

impl Products {
    /// Weights and inputs have type `weights`; sums and outputs are f32.
    pub(super) fn new(stream: &Stream, weights: Activation) -> Result<Self> {
        let workspace = Buffer::new(stream, "the workspace of matrix products", WORKSPACE, false)?;
        let handle = Handle(result::create_handle().map_err(failed("cublasLtCreate"))?);
        let description = Description::new()?;
        let element = match weights {
            Activation::F32 => sys::cudaDataType::CUDA_R_32F,
            Activation::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        };
        let element_bytes = weights.element().bytes();
        Ok(Self { handle, description, element, element_bytes, workspace, algorithms: HashMap::new() })
    }

    /// `out = weights · x` for each of `rows` rows, added to `out` where `add`.
    ///
    /// # Safety
    /// At the addresses lie all of `weights`, and `rows` rows of `x` and of `out`, until the stream has come so far.
    pub(super) unsafe fn run(
        &mut self,
        stream: &CudaStream,
        shape: Shape,
        rows: usize,
        [weights, x, out]: [CUdeviceptr; 3],
        add: bool,
    ) -> Result<()> {
        let layouts = self.layouts(shape, rows as u64)?;
        let bucket = Bucket { shape, single_row: rows == 1 };
        let algorithm = match self.algorithms.get(&bucket) {
            Some(known) => *known,
            None => {
                let chosen = self.choose(bucket)?;
                self.algorithms.insert(bucket, chosen);
                chosen
            }
        };
        let (one, beta) = (1.0_f32, if add { 1.0_f32 } else { 0.0 });
        // SAFETY: handle, description and layouts are live, the scales are f32 as the description says, and the
        // caller vouches for the addresses.
        unsafe {
            result::matmul(
                self.handle.0,
                self.description.0,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                weights as *const c_void,
                layouts[0].0,
                x as *const c_void,
                layouts[1].0,
                out as *const c_void,
                layouts[2].0,
                out as *mut c_void,
                layouts[2].0,
                &raw const algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }

    /// The library is column-major: weights are `[inputs, outputs]` to be transposed, inputs and outputs have a column
    /// a row.
    fn layouts(&self, shape: Shape, rows: u64) -> Result<[Layout; 3]> {
        let (outputs, inputs) = (shape.outputs as u64, shape.inputs as u64);
        Ok([
            Layout::new(self.element, inputs, outputs)?,
            Layout::new(self.element, inputs, rows)?,
            Layout::new(sys::cudaDataType::CUDA_R_32F, outputs, rows)?,
        ])
    }

    fn choose(&self, bucket: Bucket) -> Result<sys::cublasLtMatmulAlgo_t> {
        let rows = if bucket.single_row { 1 } else { TYPICAL_ROWS };
        let layouts = self.layouts(bucket.shape, rows)?;
        let preference = Preference::new()?;
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t as Scheme;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        // In place a split sum has no fixed order. Many rows fill the device without splitting any.
        let schemes = if bucket.single_row {
            Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32 | Scheme::CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE as u32
        } else {
            Scheme::CUBLASLT_REDUCTION_SCHEME_NONE as u32
        };
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes)?;
        // Rows are taken from the middle of a tensor, so that no more than a row's own alignment is certain.
        let alignment = |columns: usize, bytes: usize| 1_u32 << (columns * bytes).trailing_zeros().min(8);
        let input = alignment(bucket.shape.inputs, self.element_bytes);
        let output = alignment(bucket.shape.outputs, size_of::<f32>());
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, input)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, input)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output)?;
        // SAFETY: everything named is live until the call returns.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle.0,
                self.description.0,
                layouts[0].0,
                layouts[1].0,
                layouts[2].0,
                layouts[2].0,
                preference.0,
            )
        };
        Ok(found.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?.algo)
    }
}

/// What the library keeps between calls.
#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by this value and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// Transposed weights, f32 sums.
#[derive(Debug)]
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
            .map_err(failed("cublasLtMatmulDescCreate"))?;
        let description = Self(description);
        // `CUBLAS_OP_T` of `cublasOperation_t`.
        let transpose = 1_i32;
        // SAFETY: the attribute is a 32-bit integer, read before the call returns.
        unsafe {
            result::set_matmul_desc_attribute(
                description.0,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            )
        }
        .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        Ok(description)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by this value and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A column-major matrix without gaps.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(element: sys::cudaDataType, rows: u64, columns: u64) -> Result<Self> {
        let stride = i64::try_from(rows).unwrap_or(i64::MAX);
        result::create_matrix_layout(element, rows, columns, stride)
            .map(Self)
            .map_err(failed("cublasLtMatrixLayoutCreate"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by this value and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm must satisfy.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        result::create_matmul_pref().map(Self).map_err(failed("cublasLtMatmulPreferenceCreate"))
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        // SAFETY: callers pass each attribute in the type that the library documents for it; it is read before the
        // call returns.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
            .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by this value and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn failed(call: &'static str) -> impl FnOnce(CublasError) -> Error {
    move |source| Error::Cublas { call, source }
}
