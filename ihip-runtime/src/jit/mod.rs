//! From CUDA text to cubins, with nothing but libnvrtc: no GPU, no driver, no toolkit.
//!
//! ```text
//! text, architecture ─► Compiler ─► memory, else store, else Nvrtc ─► Cubin { image, resources }
//!                                                                 or the compiler's lines, with context
//! ```
//!
//! Cubins rather than PTX: the driver then compiles nothing when a module is loaded, registers and spills are the
//! ones that will run, and a compiler newer than the driver is no obstacle.

mod architecture;
pub mod cache;
mod compiler;
mod diagnostics;
mod dump;
mod error;
mod library;
mod nvrtc;
mod overrides;
mod resources;

pub use architecture::{Architecture, Multiprocessor};
pub use compiler::{Compilations, Compiler, Progress, STORE_BYTES, Watch, store};
pub use diagnostics::{Diagnostic, Diagnostics};
pub use dump::Dump;
pub use error::{JitError, Saved};
pub(crate) use library::{folders as library_folders, preload};
pub use nvrtc::{Cubin, Nvrtc};
pub use overrides::Overrides;
pub use resources::Resources;

use std::path::PathBuf;

/// The folder for everything that can be made again: `IHIP_CACHE`, else `ihip` in `XDG_CACHE_HOME`, else
/// `~/.cache/ihip`; `None` where no variable and no home is set.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    folder("IHIP_CACHE")
        // The XDG specification says that relative paths are to be ignored.
        .or_else(|| folder("XDG_CACHE_HOME").filter(|cache| cache.is_absolute()).map(|cache| cache.join("ihip")))
        .or_else(|| home().map(|home| home.join(".cache").join("ihip")))
}
