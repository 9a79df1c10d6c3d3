//! Finding libnvrtc and its functions, and the programs of a toolkit.
//!
//! These bindings are ours because the library must be found by an explicit path, without `LD_LIBRARY_PATH`:
//! cudarc opens the first of its own list of names that the loader knows, so that a stated path cannot win over an
//! older `libnvrtc.so` on the system, a missing library or function panics, and a result code that is newer than
//! its bindings is undefined behaviour in a closed enum. Here every one of these is an error.

use std::ffi::{OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{JitError, cache_folder};

/// A program under compilation.
pub(super) type Program = *mut c_void;

/// Names of the library, the newest first: CUDA 13 and 12 are what the options in use were tried with.
pub(super) const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// The part of the library that everything else of it is loaded from at the first compilation.
const BUILTINS: &str = "libnvrtc-builtins.so";

macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The library's functions; result codes are plain integers, 0 for success.
        #[derive(Clone, Copy, Debug)]
        pub(super) struct Functions {
            $($(#[$doc])* pub(super) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            /// # Safety
            /// `library` is an NVRTC of CUDA 11.3 or later.
            unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                $(
                    // SAFETY: the caller vouches for the library, and the signature is the one in its documentation.
                    let $field = *unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol)
                    }?;
                )*
                Ok(Self { $($field),* })
            }
        }
    };
}

functions! {
    version = b"nvrtcVersion\0": fn(*mut c_int, *mut c_int) -> c_int;
    error_string = b"nvrtcGetErrorString\0": fn(c_int) -> *const c_char;
    architecture_count = b"nvrtcGetNumSupportedArchs\0": fn(*mut c_int) -> c_int;
    architectures = b"nvrtcGetSupportedArchs\0": fn(*mut c_int) -> c_int;
    create = b"nvrtcCreateProgram\0":
        fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
    destroy = b"nvrtcDestroyProgram\0": fn(*mut Program) -> c_int;
    compile = b"nvrtcCompileProgram\0": fn(Program, c_int, *const *const c_char) -> c_int;
    log_size = b"nvrtcGetProgramLogSize\0": fn(Program, *mut usize) -> c_int;
    log = b"nvrtcGetProgramLog\0": fn(Program, *mut c_char) -> c_int;
    cubin_size = b"nvrtcGetCUBINSize\0": fn(Program, *mut usize) -> c_int;
    cubin = b"nvrtcGetCUBIN\0": fn(Program, *mut c_char) -> c_int;
    ptx_size = b"nvrtcGetPTXSize\0": fn(Program, *mut usize) -> c_int;
    ptx = b"nvrtcGetPTX\0": fn(Program, *mut c_char) -> c_int;
}

/// Finds and opens the library. One that cannot be used is passed over for the next, and named where none can be.
pub(super) fn find() -> Result<(PathBuf, Functions), JitError> {
    if let Some(stated) = variable("IHIP_NVRTC") {
        return open(Path::new(&stated));
    }
    let mut unusable = None;
    for name in NAMES.map(Path::new) {
        match load(name).map(|library| functions(name, library)) {
            Some(Ok(found)) => return Ok(found),
            Some(Err(error)) => _ = unusable.get_or_insert(error),
            None => {}
        }
    }
    let mut looked_in = vec!["the loader's path".to_owned()];
    for folder in folders() {
        for file in libraries_in(&folder) {
            match open(&file) {
                Ok(found) => return Ok(found),
                Err(error) => _ = unusable.get_or_insert(error),
            }
        }
        looked_in.push(folder.display().to_string());
    }
    Err(unusable.unwrap_or(JitError::LibraryNotFound { looked_in }))
}

/// Opens the library at `path`, a file or the folder that holds it.
pub(super) fn open(path: &Path) -> Result<(PathBuf, Functions), JitError> {
    let file =
        if path.is_dir() { libraries_in(path).next() } else { Some(path.to_owned()).filter(|file| file.is_file()) };
    let Some(file) = file else {
        return Err(JitError::LibraryNotFound { looked_in: vec![path.display().to_string()] });
    };
    // The library opens its builtins by name when it first compiles and has no search path of its own. Once they
    // are loaded, the loader answers that name with them wherever they lie.
    for builtins in files_named(file.parent().unwrap_or(Path::new(".")), BUILTINS) {
        preload(&builtins);
    }
    // SAFETY: opening runs the initialisers of NVIDIA's library, which have no preconditions.
    let library = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|source| JitError::LibraryUnusable { path: file.clone(), source })?;
    functions(&file, library)
}

fn functions(path: &Path, library: Library) -> Result<(PathBuf, Functions), JitError> {
    // SAFETY: the file carries NVRTC's name; its functions have kept their signatures since CUDA 11.3.
    let functions = unsafe { Functions::load(&library) }
        .map_err(|source| JitError::LibraryUnusable { path: path.to_owned(), source })?;
    // Never unloaded: the function pointers are copied out, and the library keeps threads and exit handlers.
    std::mem::forget(library);
    Ok((path.to_owned(), functions))
}

pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Loads a library of NVIDIA's for good, so that the loader answers its name with it; whether that went well.
pub(crate) fn preload(path: &Path) -> bool {
    load(path).map(std::mem::forget).is_some()
}

fn load(path: &Path) -> Option<Library> {
    // SAFETY: opening runs the initialisers of NVIDIA's library, which have no preconditions.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok()
}

/// The folders where CUDA, ihip's own cache and `pip` keep libraries, in the order they are searched. Python is asked
/// last, and only if nothing was found before: starting it takes longer than everything else that a warm start does.
pub(crate) fn folders() -> impl Iterator<Item = PathBuf> {
    let toolkits = toolkits().into_iter().map(|root| root.join("lib64"));
    let cache = cache_folder().map(|cache| cache.join("nvrtc"));
    let packages = std::iter::once_with(python_path).flatten();
    let libraries = packages.flat_map(|site| ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"].map(|lib| site.join(lib)));
    toolkits.chain(cache).chain(libraries)
}

/// The file of one of a toolkit's programs, such as `nvdisasm`, or every folder that was searched for it: those of
/// `PATH`, of installed toolkits, and of the packages of `python3`.
pub(super) fn program(name: &str) -> Result<PathBuf, Vec<PathBuf>> {
    let path = variable("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(toolkits().iter().map(|root| root.join("bin")));
    for site in python_path() {
        folders.push(site.join("nvidia/cu13/bin"));
        folders.push(site.join(format!("nvidia/cuda_{name}/bin")));
    }
    let found = folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    found.ok_or(folders)
}

/// Folders of CUDA toolkits: `CUDA_PATH`, `CUDA_HOME` and `/usr/local/cuda*`, the newest first.
fn toolkits() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(variable).map(PathBuf::from).collect();
    let mut installed: Vec<PathBuf> = std::fs::read_dir("/usr/local")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cuda")))
        .collect();
    installed.sort_by_key(|root| std::cmp::Reverse(version(root)));
    roots.append(&mut installed);
    roots
}

/// The numbers in the name of a toolkit's folder, such as 12 and 8 in `cuda-12.8`; none in `cuda`.
fn version(root: &Path) -> Vec<u32> {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Where the Python on the path looks for packages; nothing where there is none.
fn python_path() -> Vec<PathBuf> {
    let program = "import sys; print('\\n'.join(path for path in sys.path if path.endswith('-packages')))";
    let output = Command::new("python3").args(["-c", program]).stdin(Stdio::null()).output();
    let Ok(output) = output else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect()
}

/// Files of the library's names in `folder`, the newest first.
fn libraries_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    NAMES.into_iter().map(move |name| folder.join(name)).filter(|file| file.is_file())
}

fn files_named(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolkits_are_told_apart_by_numbers_and_not_by_letters() {
        let mut roots =
            ["cuda", "cuda-9.2", "cuda-13", "cuda-12.8", "cuda-12.10"].map(|name| Path::new("/usr/local").join(name));
        roots.sort_by_key(|root| std::cmp::Reverse(version(root)));
        let names = roots.map(|root| root.file_name().unwrap_or_default().to_string_lossy().into_owned());
        assert_eq!(names, ["cuda-13", "cuda-12.10", "cuda-12.8", "cuda-9.2", "cuda"]);
    }
}
