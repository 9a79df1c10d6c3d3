//! Compiled kernels on disk, and nothing that has to be believed.
//!
//! A hit loads device code, so an entry is used only when its directory belongs to this user alone and every byte of
//! the file is the one that was written ([`Entry::decode`]). Nothing here can make a run fail: a directory that is
//! read-only, full or refused costs the cache, an entry that is broken costs one compilation.
//!
//! No lock is taken between processes: an entry is a function of its key, it appears by `rename`, and two processes
//! that miss together write the same bytes twice.

mod entry;
mod key;
mod secret;
mod store;
#[cfg(test)]
mod tests;

pub use entry::{Entry, Rejection};
pub use key::CacheKey;
pub use secret::Secret;
pub(super) use store::own_directory;
pub use store::{Counts, CubinStore, Listed, StoreError};
