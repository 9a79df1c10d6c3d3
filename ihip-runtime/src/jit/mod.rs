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
/// `~/.cache/ihip`; `None` where none of the three variables is set.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("IHIP_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("ihip")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache").join("ihip")))
}
