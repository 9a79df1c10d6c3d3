//! From a kernel's text to a function of the host.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use sha2::{Digest, Sha256};

use crate::support::mutant;

use super::error::{EmulatorError, Line};
use super::shared::DYNAMIC_LIMIT;
use super::thread::Enter;

/// In front of every text.
const HEADER: &str = include_str!("emulator.h");
const HEADER_NAME: &str = "emulator.h";

/// No contraction of a product and a sum into one rounding, on any host: the results are the same on every machine and
/// those of neither `--fmad` setting of NVRTC are preferred. Kernels read elements through pointers to wider types, as
/// CUDA allows: no strict aliasing. No exceptions: kernels leave their stacks behind when one of their threads fails.
/// Large frames touch every page, or they would reach over the guard page into another thread's stack.
///
/// Of the sanitizers only what the compiler does for them is used: what it calls stands in emulator.h, and the libraries
/// that come with them are left out. Lines are kept, so that an address in the code is a line of the text.
const OPTIONS: [&str; 15] = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fsanitize=thread",
    "-fsanitize=alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero",
    "-nodefaultlibs",
    "-fPIC",
    "-shared",
    "-DIHIP_EMULATOR",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-rtti",
    "-fstack-clash-protection",
    "-w",
];

/// A kernel as the emulator takes it: the text that NVRTC gets, and what the launch needs besides.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Name of the entry point.
    pub name: &'a str,
    /// The complete translation unit.
    pub text: &'a str,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// A kernel that can be launched.
#[derive(Debug)]
pub struct Compiled {
    pub(super) name: String,
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) enter: Enter,
    /// Kinds of the arguments by the text itself.
    pub(super) signature: String,
    /// Holds the code that `enter` is part of.
    _library: libloading::Library,
    file: PathBuf,
}

type Loaded = HashMap<String, Arc<Compiled>>;
static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);
static ATTEMPTS: AtomicU32 = AtomicU32::new(0);

/// Where compiled kernels are kept from one run of the tests to the next.
fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    target.join("emulator")
}

impl Compiled {
    /// Compiles `source` with the compiler that `CXX` names, `c++` where it names none.
    ///
    /// # Errors
    /// A missing compiler, a text it refuses, a shape that no device runs.
    pub fn new(source: &Source<'_>) -> Result<Arc<Self>, EmulatorError> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        Self::with_compiler(source, &compiler)
    }

    /// Compiles `source` with `compiler`, or finds it compiled already.
    ///
    /// # Errors
    /// As [`Compiled::new`].
    pub fn with_compiler(source: &Source<'_>, compiler: &str) -> Result<Arc<Self>, EmulatorError> {
        let kernel = || source.name.to_owned();
        if source.threads == 0 || !source.threads.is_multiple_of(32) || source.threads > 1024 {
            return Err(EmulatorError::Threads { kernel: kernel(), threads: source.threads });
        }
        if source.shared_bytes as usize > DYNAMIC_LIMIT {
            let (bytes, limit) = (source.shared_bytes, DYNAMIC_LIMIT);
            return Err(EmulatorError::DynamicShared { kernel: kernel(), bytes, limit });
        }
        let unit = format!(
            "#line 1 \"{HEADER_NAME}\"\n{HEADER}\n#line 1 \"{name}.cu\"\n{text}\nEMULATOR_ENTRY({name})\n",
            name = source.name,
            text = mutant::text(source.name, source.text),
        );
        let digest = Sha256::digest(format!("{compiler} {OPTIONS:?} {} {unit}", std::env::consts::ARCH));
        let hash = digest.iter().take(12).fold(String::new(), |mut hash, byte| {
            write!(hash, "{byte:02x}").expect("a String takes everything");
            hash
        });
        let key = format!("{hash} {} {}", source.threads, source.shared_bytes);
        if let Some(compiled) = LOADED.lock().expect("loading does not panic").get(&key) {
            return Ok(Arc::clone(compiled));
        }
        let library = folder().join(format!("{}-{hash}.so", source.name));
        if !library.exists() {
            compile(source.name, &unit, compiler, &library)?;
        }
        let compiled = Arc::new(load(source, &library)?);
        LOADED.lock().expect("loading does not panic").insert(key, Arc::clone(&compiled));
        Ok(compiled)
    }

    /// Where its library begins.
    pub(super) fn library(&self) -> Option<usize> {
        library_of(self.enter as usize)
    }

    /// The kernel's own line that the call before the address `caller` stands in. The small functions of the text are
    /// part of what uses them, and their lines say less.
    pub(super) fn line(&self, caller: usize) -> Option<Line> {
        let debug = addr2line::Loader::new(&self.file).ok()?;
        let offset = caller.checked_sub(self.library()? + 1)?;
        let mut frames = debug.find_frames(offset as u64).ok()?;
        let mut outermost = None;
        while let Some(frame) = frames.next().ok()? {
            outermost = frame.location.or(outermost);
        }
        let location = outermost?;
        // The compiler puts a folder in front of what the text calls itself.
        let declared = location.file?.rsplit('/').next()?.to_owned();
        Some(Line { declared, number: location.line? })
    }
}

fn compile(kernel: &str, unit: &str, compiler: &str, library: &PathBuf) -> Result<(), EmulatorError> {
    let in_folder = |source| EmulatorError::Folder { folder: folder(), source };
    std::fs::create_dir_all(folder()).map_err(in_folder)?;
    // Other threads and processes may compile the same text: each under its own name until it is whole.
    let attempt = format!("{}-{}", std::process::id(), ATTEMPTS.fetch_add(1, Ordering::Relaxed));
    let text = library.with_extension(format!("{attempt}.cc"));
    let object = library.with_extension(format!("{attempt}.so"));
    std::fs::write(&text, unit).map_err(in_folder)?;
    let output = Command::new(compiler)
        .args(OPTIONS)
        .arg(&text)
        .arg("-o")
        .arg(&object)
        .args(["-lm", "-lc"])
        .output()
        .map_err(|source| EmulatorError::NoCompiler { command: compiler.to_owned(), source })?;
    let kept = library.with_extension("cc");
    std::fs::rename(&text, &kept).map_err(in_folder)?;
    if !output.status.success() {
        return Err(EmulatorError::Compile {
            kernel: kernel.to_owned(),
            file: kept,
            messages: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    std::fs::rename(&object, library).map_err(in_folder)
}

fn load(source: &Source<'_>, file: &PathBuf) -> Result<Compiled, EmulatorError> {
    let failed = |error| EmulatorError::Load { kernel: source.name.to_owned(), source: error };
    // SAFETY: the library was compiled from a kernel's text and has no initialisers; the two functions are declared by
    // EMULATOR_ENTRY of emulator.h with these types, and the signature is a string constant.
    unsafe {
        let library = libloading::Library::new(file).map_err(failed)?;
        let enter = *library.get::<Enter>(format!("{}__enter", source.name)).map_err(failed)?;
        let signature = *library
            .get::<unsafe extern "C" fn() -> *const c_char>(format!("{}__signature", source.name))
            .map_err(failed)?;
        Ok(Compiled {
            name: source.name.to_owned(),
            threads: source.threads,
            shared_bytes: source.shared_bytes,
            enter,
            signature: CStr::from_ptr(signature()).to_string_lossy().into_owned(),
            _library: library,
            file: file.clone(),
        })
    }
}

/// Where the library begins that `address` lies in.
pub(super) fn library_of(address: usize) -> Option<usize> {
    // SAFETY: a zeroed description is a valid one, and the system only looks the address up.
    unsafe {
        let mut found = MaybeUninit::<libc::Dl_info>::zeroed().assume_init();
        let known = libc::dladdr(address as *const c_void, &raw mut found) != 0;
        known.then_some(found.dli_fbase as usize)
    }
}
