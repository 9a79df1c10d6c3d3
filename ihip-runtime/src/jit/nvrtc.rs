//! Compiling one kernel for one architecture.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;

use super::diagnostics::without_line_directives;
use super::library::{self, Functions, Program};
use super::{Architecture, Diagnostics, JitError, Resources, Saved, cache_folder};

/// `nvrtcResult` of a text that does not compile.
const COMPILATION: c_int = 6;

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The ELF file that the driver loads.
    pub image: Vec<u8>,
    /// What the kernel takes of a multiprocessor.
    pub resources: Resources,
}

/// The run-time compiler. Compilations may run side by side.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    architectures: Vec<Architecture>,
    functions: Functions,
}

impl Nvrtc {
    /// The first library found in `IHIP_NVRTC` (a file or its folder; nothing else is tried where it is set), the
    /// loader's path, `CUDA_PATH` and `CUDA_HOME`, `/usr/local/cuda*`, `nvrtc` in [`cache_folder`], and the packages of
    /// `python3`.
    ///
    /// # Errors
    /// [`JitError::LibraryNotFound`] with every place searched, [`JitError::LibraryUnusable`].
    pub fn find() -> Result<Self, JitError> {
        library::find().and_then(|(path, functions)| Self::with_functions(path, functions))
    }

    /// The library at `path`, a file or the folder that holds it.
    ///
    /// # Errors
    /// Those of [`Nvrtc::find`].
    pub fn open(path: &Path) -> Result<Self, JitError> {
        library::open(path).and_then(|(path, functions)| Self::with_functions(path, functions))
    }

    fn with_functions(path: PathBuf, functions: Functions) -> Result<Self, JitError> {
        let check = |call, code| check(&functions, call, &path.display().to_string(), &[], code);
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: both pointers are valid for one integer each.
        check("nvrtcVersion", unsafe { (functions.version)(&raw mut major, &raw mut minor) })?;
        // SAFETY: the pointer is valid for one integer.
        check("nvrtcGetNumSupportedArchs", unsafe { (functions.architecture_count)(&raw mut count) })?;
        let mut capabilities = vec![0; count.unsigned_abs() as usize];
        // SAFETY: the buffer holds as many integers as the library just said it writes.
        check("nvrtcGetSupportedArchs", unsafe { (functions.architectures)(capabilities.as_mut_ptr()) })?;
        let architectures =
            capabilities.iter().map(|value| Architecture::of_capability(value.unsigned_abs())).collect();
        Ok(Self { path, version: (major.unsigned_abs(), minor.unsigned_abs()), architectures, functions })
    }

    /// Major and minor version.
    #[must_use]
    pub const fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The file it was loaded from, or the name under which the loader knew it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it compiles for, ascending.
    #[must_use]
    pub fn architectures(&self) -> &[Architecture] {
        &self.architectures
    }

    /// The options of a compilation, in order. No fast mathematics: f32 results are compared with a reference.
    #[must_use]
    pub fn options(architecture: Architecture) -> Vec<String> {
        vec![
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".to_owned(),
            "--device-as-default-execution-space".to_owned(),
            "--fmad=true".to_owned(),
            "--generate-line-info".to_owned(),
            "--ptxas-options=--verbose".to_owned(),
        ]
    }

    /// Compiles `text`, whose entry point is called `kernel`.
    ///
    /// # Errors
    /// [`JitError::Rejected`] with the compiler's lines, [`JitError::UnsupportedArchitecture`], or a failure of the
    /// library itself.
    pub fn compile(&self, kernel: &str, text: &str, architecture: Architecture) -> Result<Cubin, JitError> {
        self.expect(architecture)?;
        let options = Self::options(architecture);
        let compilation = Compilation::run(self.functions, kernel, text, &options)?;
        let log = compilation.log()?;
        match compilation.code {
            0 => {}
            COMPILATION => return Err(self.rejected(kernel, text, architecture, &options)),
            code => {
                return Err(JitError::Failed {
                    call: "nvrtcCompileProgram",
                    kernel: kernel.to_owned(),
                    code,
                    meaning: format!("{}: {}", meaning(&self.functions, code), log.trim()),
                    options: options.clone(),
                });
            }
        }
        if let Some(resources) = Resources::read(&log, kernel) {
            return Ok(Cubin { image: compilation.cubin()?, resources });
        }
        // Beside a driver, newer versions answer from the driver's cache, where no log is kept. Older ones have neither
        // that cache nor the option, so it is given only once a log has stayed empty.
        let uncached = [options.as_slice(), &["--no-cache".to_owned()]].concat();
        let compilation = Compilation::run(self.functions, kernel, text, &uncached)?;
        let log = compilation.log()?;
        match Resources::read(&log, kernel) {
            Some(resources) => Ok(Cubin { image: compilation.cubin()?, resources }),
            None => Err(JitError::NoResources { kernel: kernel.to_owned(), architecture, log }),
        }
    }

    /// The PTX of `text`, whose entry point is called `kernel`: for reading, since a driver older than this library may
    /// refuse it.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`].
    pub fn ptx(&self, kernel: &str, text: &str, architecture: Architecture) -> Result<String, JitError> {
        self.expect(architecture)?;
        let mut options = Self::options(architecture);
        options[0] = format!("--gpu-architecture={}", architecture.virtual_name());
        options.retain(|option| !option.starts_with("--ptxas-options"));
        let compilation = Compilation::run(self.functions, kernel, text, &options)?;
        if compilation.code == COMPILATION {
            return Err(self.rejected(kernel, text, architecture, &options));
        }
        compilation.check("nvrtcCompileProgram", compilation.code)?;
        compilation.ptx()
    }

    /// Fails where this library does not compile for `architecture`.
    ///
    /// # Errors
    /// [`JitError::UnsupportedArchitecture`].
    pub fn expect(&self, architecture: Architecture) -> Result<(), JitError> {
        if self.architectures.contains(&architecture.portable()) {
            return Ok(());
        }
        Err(JitError::UnsupportedArchitecture {
            architecture,
            version: self.version,
            supported: self.architectures.clone(),
        })
    }

    /// Why the text was rejected. It is compiled once more without its `#line` directives: the compiler's line
    /// numbers then find the text that is really there, which a directive's numbers need not.
    fn rejected(&self, kernel: &str, text: &str, architecture: Architecture, options: &[String]) -> JitError {
        let plain = without_line_directives(text);
        let log = match Compilation::run(self.functions, kernel, &plain, options).and_then(|again| again.log()) {
            Ok(log) => log,
            Err(error) => return error,
        };
        let saved = save(kernel, text, architecture);
        JitError::Rejected {
            kernel: kernel.to_owned(),
            architecture,
            diagnostics: Box::new(Diagnostics::read(&log, text)),
            options: options.to_vec(),
            saved,
        }
    }
}

fn save(kernel: &str, text: &str, architecture: Architecture) -> Saved {
    let Some(cache) = cache_folder() else {
        return Saved::NoFolder;
    };
    let folder = cache.join("rejected");
    let path = folder.join(format!("{kernel}.{architecture}.cu"));
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, text)) {
        Ok(()) => Saved::At(path),
        Err(source) => Saved::Failed { path, source },
    }
}

/// A program of the library, compiled or rejected; destroyed with this value.
struct Compilation<'a> {
    functions: Functions,
    program: Program,
    code: c_int,
    kernel: &'a str,
    options: &'a [String],
}

impl<'a> Compilation<'a> {
    fn run(functions: Functions, kernel: &'a str, text: &str, options: &'a [String]) -> Result<Self, JitError> {
        let nul = |offset| JitError::NulByte { kernel: kernel.to_owned(), offset };
        let text = CString::new(text).map_err(|error| nul(error.nul_position()))?;
        let name = CString::new(format!("{kernel}.cu")).map_err(|error| nul(error.nul_position()))?;
        let mut program = ptr::null_mut();
        // SAFETY: both strings end in NUL and outlive the call, which copies them; there are no headers.
        let code =
            unsafe { (functions.create)(&raw mut program, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) };
        check(&functions, "nvrtcCreateProgram", kernel, options, code)?;
        let strings: Vec<CString> =
            options.iter().map(|option| CString::new(option.as_str()).unwrap_or_default()).collect();
        let pointers: Vec<*const c_char> = strings.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program is live, and the pointers are `count` strings that outlive the call.
        let code = unsafe { (functions.compile)(program, count, pointers.as_ptr()) };
        Ok(Self { functions, program, code, kernel, options })
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), JitError> {
        check(&self.functions, call, self.kernel, self.options, code)
    }

    /// The log, warnings and resources included.
    fn log(&self) -> Result<String, JitError> {
        let mut size = 0;
        // SAFETY: the program is live and the pointer valid for one integer.
        self.check("nvrtcGetProgramLogSize", unsafe { (self.functions.log_size)(self.program, &raw mut size) })?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: the buffer is as long as the library just said the log is.
        self.check("nvrtcGetProgramLog", unsafe { (self.functions.log)(self.program, bytes.as_mut_ptr().cast()) })?;
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, JitError> {
        let mut size = 0;
        // SAFETY: the program is live and the pointer valid for one integer.
        self.check("nvrtcGetCUBINSize", unsafe { (self.functions.cubin_size)(self.program, &raw mut size) })?;
        let mut image = vec![0_u8; size];
        // SAFETY: the buffer is as long as the library just said the cubin is.
        self.check("nvrtcGetCUBIN", unsafe { (self.functions.cubin)(self.program, image.as_mut_ptr().cast()) })?;
        Ok(image)
    }

    fn ptx(&self) -> Result<String, JitError> {
        let mut size = 0;
        // SAFETY: the program is live and the pointer valid for one integer.
        self.check("nvrtcGetPTXSize", unsafe { (self.functions.ptx_size)(self.program, &raw mut size) })?;
        let mut text = vec![0_u8; size];
        // SAFETY: the buffer is as long as the library just said the text is.
        self.check("nvrtcGetPTX", unsafe { (self.functions.ptx)(self.program, text.as_mut_ptr().cast()) })?;
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created by this library and is destroyed once; a failure leaves nothing to do.
        unsafe { (self.functions.destroy)(&raw mut self.program) };
    }
}

fn check(
    functions: &Functions,
    call: &'static str,
    kernel: &str,
    options: &[String],
    code: c_int,
) -> Result<(), JitError> {
    if code == 0 {
        return Ok(());
    }
    let meaning = meaning(functions, code);
    Err(JitError::Failed { call, kernel: kernel.to_owned(), code, meaning, options: options.to_vec() })
}

fn meaning(functions: &Functions, code: c_int) -> String {
    // SAFETY: the function accepts any integer and returns a static string.
    unsafe { CStr::from_ptr((functions.error_string)(code)) }.to_string_lossy().into_owned()
}
