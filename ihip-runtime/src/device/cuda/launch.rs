//! Kernels on the device: compiled side by side, loaded once, launched with checked arguments.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUdeviceptr, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, result};
use cudarc::nvrtc::Ptx;
use ihip_dsl::emit::{ArgumentKind, Instructions, Kernel};
use rayon::prelude::*;

use super::memory::failed;
use crate::device::Compilation;
use crate::jit::{Compiler, JitError, Resources};
use crate::{Error, Result};

/// What a kernel is handed for one argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operand {
    /// The address of a buffer, for inputs and outputs alike.
    Address(CUdeviceptr),
    /// A 32-bit integer.
    I32(i32),
    /// A float.
    F32(f32),
}

/// A size as a kernel takes it.
///
/// # Errors
/// [`Error::TooManyForKernels`].
pub(super) fn word(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::TooManyForKernels { value, most: i32::MAX })
}

/// A loaded kernel.
#[derive(Debug)]
pub(super) struct Function {
    name: String,
    function: CudaFunction,
    arguments: Vec<ArgumentKind>,
    threads: u32,
    shared_bytes: u32,
}

impl Function {
    /// Whether argument `index` is a buffer that the kernel reads and does not write.
    pub(super) fn reads(&self, index: usize) -> bool {
        matches!(self.arguments.get(index), Some(ArgumentKind::Input(_)))
    }

    /// Launches `grid` blocks.
    pub(super) fn launch(&self, stream: &CudaStream, grid: [u32; 3], operands: &[Operand]) -> Result<()> {
        let fits = self.arguments.len() == operands.len()
            && self.arguments.iter().zip(operands).all(|(argument, operand)| match argument {
                ArgumentKind::Input(_) | ArgumentKind::Output(_) => matches!(operand, Operand::Address(_)),
                ArgumentKind::I32 => matches!(operand, Operand::I32(_)),
                ArgumentKind::F32 => matches!(operand, Operand::F32(_)),
            });
        if !fits {
            return Err(Error::ArgumentMismatch {
                kernel: self.name.clone(),
                takes: format!("{:?}", self.arguments),
                given: format!("{operands:?}"),
            });
        }
        if grid.contains(&0) {
            return Ok(());
        }
        let mut pointers: Vec<*mut c_void> = operands
            .iter()
            .map(|operand| match operand {
                Operand::Address(address) => std::ptr::from_ref(address).cast_mut().cast(),
                Operand::I32(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Operand::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the kernel takes as many arguments of these sizes, as checked above, and the driver copies them
        // before it returns. That the addresses are of buffers long enough is the emitter's contract, which the
        // emulator checks for the same text and the same launches.
        unsafe {
            result::launch_kernel(
                self.function.cu_function(),
                (grid[0], grid[1], grid[2]),
                (self.threads, 1, 1),
                self.shared_bytes,
                stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(failed("cuLaunchKernel"))
    }
}

/// Compiles and loads kernels, each text once.
#[derive(Debug)]
pub(super) struct Loader {
    context: Arc<CudaContext>,
    compiler: Compiler,
    /// By name, each with its text: kernels of two plans may share a name and differ in a constant.
    loaded: HashMap<String, Vec<(String, Arc<Function>)>>,
    /// What compiling, or finding what was compiled before, took so far.
    compiling: Duration,
}

impl Loader {
    pub(super) fn new(context: Arc<CudaContext>, compiler: Compiler) -> Self {
        Self { context, compiler, loaded: HashMap::new(), compiling: Duration::ZERO }
    }

    /// What each kernel takes of a multiprocessor, or why it does not compile; compiled side by side, and not loaded.
    pub(super) fn resources(&self, kernels: &[Kernel]) -> Vec<std::result::Result<Resources, Arc<JitError>>> {
        let cubin = |kernel: &Kernel| self.compiler.cubin(&kernel.name, &kernel.text).map(|cubin| cubin.resources);
        kernels.par_iter().map(cubin).collect()
    }

    /// What it compiles for, and by which version.
    pub(super) fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// What the text of kernels may use here.
    pub(super) const fn instructions(&self) -> Instructions {
        self.compiler.architecture().instructions()
    }

    /// What it compiled so far.
    pub(super) fn compilation(&self) -> Compilation {
        Compilation { seconds: self.compiling.as_secs_f64(), kernels: self.compiler.compilations() }
    }

    /// A kernel that was loaded. Texts are long: to compare one takes less than to hash it.
    fn known(&self, kernel: &Kernel) -> Option<&Arc<Function>> {
        let of_name = self.loaded.get(&kernel.name)?;
        of_name.iter().find(|(text, _)| *text == kernel.text).map(|(_, function)| function)
    }

    /// One kernel, loaded unless it was before.
    pub(super) fn function(&mut self, kernel: &Kernel) -> Result<Arc<Function>> {
        if self.known(kernel).is_none() {
            self.load(vec![kernel.clone()])?;
        }
        self.known(kernel).cloned().ok_or_else(|| Error::NotInPlan { name: kernel.name.clone() })
    }

    /// Loads `kernels`; those that were not loaded before are compiled side by side.
    pub(super) fn load(&mut self, kernels: Vec<Kernel>) -> Result<HashMap<String, Arc<Function>>> {
        let missing: Vec<&Kernel> = kernels.iter().filter(|kernel| self.known(kernel).is_none()).collect();
        let texts: Vec<(&str, &str)> = missing.iter().map(|kernel| (&*kernel.name, &*kernel.text)).collect();
        let start = Instant::now();
        let compiled = self.compiler.cubins(&texts, &|_| ())?;
        self.compiling += start.elapsed();
        for (kernel, cubin) in missing.into_iter().zip(compiled) {
            let function = Arc::new(self.load_one(kernel, cubin.image.clone())?);
            self.loaded.entry(kernel.name.clone()).or_default().push((kernel.text.clone(), function));
        }
        let function = |kernel: Kernel| self.known(&kernel).cloned().map(|function| (kernel.name, function));
        Ok(kernels.into_iter().filter_map(function).collect())
    }

    fn load_one(&self, kernel: &Kernel, image: Vec<u8>) -> Result<Function> {
        let module = self.context.load_module(Ptx::from_binary(image)).map_err(failed("cuModuleLoadData"))?;
        let function = module.load_function(&kernel.name).map_err(failed("cuModuleGetFunction"))?;
        // Beyond 48 KiB a block must be allowed to use it, and the kernel's own arrays count as well.
        if kernel.shared_bytes > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, i32::try_from(kernel.shared_bytes).unwrap_or(i32::MAX))
                .map_err(failed("cuFuncSetAttribute"))?;
        }
        Ok(Function {
            name: kernel.name.clone(),
            function,
            arguments: kernel.arguments.iter().map(|argument| argument.kind).collect(),
            threads: kernel.threads,
            shared_bytes: kernel.shared_bytes,
        })
    }
}
