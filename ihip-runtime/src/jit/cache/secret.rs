//! A key file that tells this user's cubins from anyone else's.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::StoreError;

/// Shortest secret that is accepted, in bytes.
const SHORTEST: usize = 16;
/// Longest secret that is read, in bytes.
const LONGEST: u64 = 4096;

/// The content of a key file. A hash shows that an entry is whole; only this shows who wrote it.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// Reads a key file, which must belong to this user and be closed to all others.
    ///
    /// # Errors
    /// [`StoreError`] where the file cannot be read, is another user's or open to others, or is too short to be a secret.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let (user, mode) = (rustix::process::geteuid().as_raw(), metadata.mode() & 0o777);
        if metadata.uid() != user {
            return Err(StoreError::OtherOwner { path: path.to_owned(), owner: metadata.uid(), user });
        }
        if mode & 0o077 != 0 {
            return Err(StoreError::OpenToOthers { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() < SHORTEST {
            return Err(StoreError::ShortSecret { path: path.to_owned(), bytes: bytes.len(), shortest: SHORTEST });
        }
        Ok(Self::new(&bytes))
    }

    /// A secret given as bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(Hmac::new_from_slice(bytes).expect("HMAC takes a key of any length"))
    }

    /// HMAC-SHA-256 of `digest`.
    pub(super) fn sign(&self, digest: &[u8; 32]) -> [u8; 32] {
        self.0.clone().chain_update(digest).finalize().into_bytes().into()
    }

    /// Whether `signature` is [`Secret::sign`] of `digest`, in constant time.
    pub(super) fn verify(&self, digest: &[u8; 32], signature: &[u8; 32]) -> bool {
        self.0.clone().chain_update(digest).verify_slice(signature).is_ok()
    }
}
