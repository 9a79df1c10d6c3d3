//! One file of the store: a cubin behind a header that says what it is.
//!
//! ```text
//! magic 8 | key 32 | architecture | kernel | NVRTC major 4, minor 4 | resources 5 × 4 | cubin | digest 32 | signature 32
//! ```
//!
//! Strings and the cubin stand behind their length (8 bytes); numbers are little-endian. The digest is SHA-256 over
//! all that stands before it; the signature is HMAC-SHA-256 over the digest, or zeros where there is no secret.

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{CacheKey, Secret};
use crate::jit::Resources;

const MAGIC: &[u8; 8] = b"IHIPCUB1";
const SIGNATURE: usize = 32;
const DIGEST: usize = 32;
const UNSIGNED: [u8; SIGNATURE] = [0; SIGNATURE];

/// A cubin and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it was compiled from and by.
    pub key: CacheKey,
    /// Architecture, such as `sm_90`.
    pub architecture: String,
    /// Entry point of the kernel.
    pub kernel: String,
    /// Version of NVRTC.
    pub nvrtc: (u32, u32),
    /// Registers, spills and shared memory, as the compiler reported them.
    pub resources: Resources,
    /// The device code.
    pub image: Vec<u8>,
}

/// Why a file of the store is not used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    /// It does not begin as an entry does.
    #[error("not an entry of this cache")]
    NotAnEntry,
    /// A field reaches past the end.
    #[error("truncated at byte {length}")]
    Truncated {
        /// Bytes there are.
        length: usize,
    },
    /// There is more than an entry.
    #[error("{bytes} bytes behind the entry")]
    TrailingBytes {
        /// Bytes too many.
        bytes: usize,
    },
    /// A byte is not the one that was written.
    #[error("digest does not match")]
    Digest,
    /// Not written with this secret, or written with one where there is none now.
    #[error("signature does not match")]
    Signature,
    /// An entry under another one's name.
    #[error("holds another key")]
    OtherKey,
    /// A name that is not UTF-8, which nobody here writes.
    #[error("a name that is not UTF-8")]
    Name,
}

impl Entry {
    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self, secret: Option<&Secret>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.image.len() + 256);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.key.bytes());
        for name in [&self.architecture, &self.kernel] {
            bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        let Resources { registers, stack_bytes, spill_store_bytes, spill_load_bytes, shared_bytes } = self.resources;
        let (major, minor) = self.nvrtc;
        for number in [major, minor, registers, stack_bytes, spill_store_bytes, spill_load_bytes, shared_bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&(self.image.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.image);
        let digest: [u8; DIGEST] = Sha256::digest(&bytes).into();
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(&secret.map_or(UNSIGNED, |secret| secret.sign(&digest)));
        bytes
    }

    /// The version of NVRTC that the beginning of a file says it was compiled by: not checked against anything.
    pub(super) fn stated_nvrtc(head: &[u8]) -> Result<(u32, u32), Rejection> {
        let mut reader = Reader { bytes: head, at: 0 };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(Rejection::NotAnEntry);
        }
        reader.array::<32>()?;
        reader.prefixed()?;
        reader.prefixed()?;
        Ok((u32::from_le_bytes(reader.array()?), u32::from_le_bytes(reader.array()?)))
    }

    /// Reads a file back, believing none of it: allocates no more than the file's own length.
    ///
    /// # Errors
    /// [`Rejection`] wherever a byte, the key or the signature is not what [`Entry::encode`] would have written.
    pub fn decode(bytes: &[u8], key: &CacheKey, secret: Option<&Secret>) -> Result<Self, Rejection> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(Rejection::NotAnEntry);
        }
        let stored: [u8; 32] = reader.array()?;
        let architecture = reader.prefixed()?;
        let kernel = reader.prefixed()?;
        let mut numbers = [0; 7];
        for number in &mut numbers {
            *number = u32::from_le_bytes(reader.array()?);
        }
        let image = reader.prefixed()?;
        let covered = reader.at;
        let digest: [u8; DIGEST] = reader.array()?;
        let signature: [u8; SIGNATURE] = reader.array()?;
        if reader.at != bytes.len() {
            return Err(Rejection::TrailingBytes { bytes: bytes.len() - reader.at });
        }
        if digest != <[u8; DIGEST]>::from(Sha256::digest(&bytes[..covered])) {
            return Err(Rejection::Digest);
        }
        if !secret.map_or(signature == UNSIGNED, |secret| secret.verify(&digest, &signature)) {
            return Err(Rejection::Signature);
        }
        if stored != *key.bytes() {
            return Err(Rejection::OtherKey);
        }
        let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Rejection::Name);
        let [major, minor, registers, stack_bytes, spill_store_bytes, spill_load_bytes, shared_bytes] = numbers;
        Ok(Self {
            key: *key,
            architecture: name(architecture)?,
            kernel: name(kernel)?,
            nvrtc: (major, minor),
            resources: Resources { registers, stack_bytes, spill_store_bytes, spill_load_bytes, shared_bytes },
            image: image.to_vec(),
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Rejection> {
        let truncated = Rejection::Truncated { length: self.bytes.len() };
        let end = self.at.checked_add(length).ok_or(truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Rejection> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as asked"))
    }

    fn prefixed(&mut self) -> Result<&'a [u8], Rejection> {
        let length = u64::from_le_bytes(self.array()?);
        let length = usize::try_from(length).map_err(|_| Rejection::Truncated { length: self.bytes.len() })?;
        self.take(length)
    }
}
