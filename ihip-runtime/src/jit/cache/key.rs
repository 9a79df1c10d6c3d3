//! What makes two compilations the same.

use std::fmt;

use sha2::{Digest, Sha256};

/// Changes whenever the meaning of a key does.
const DOMAIN: &str = "ihip-cubin-1";

/// SHA-256 over everything that a cubin depends on: text, options in order, architecture, compiler version.
///
/// The text is the generated one, so a change of the emitter can never find a stale entry, and no version of ihip is
/// part of it. Every field goes in behind its length: no two lists of fields give the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// Key of compiling `text` with `options` (in order) for `architecture` (`sm_90`) by NVRTC `major.minor`.
    #[must_use]
    pub fn new(text: &str, options: &[String], architecture: &str, nvrtc: (u32, u32)) -> Self {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(DOMAIN.as_bytes());
        field(text.as_bytes());
        field(&(options.len() as u64).to_le_bytes());
        for option in options {
            field(option.as_bytes());
        }
        field(architecture.as_bytes());
        field(&nvrtc.0.to_le_bytes());
        field(&nvrtc.1.to_le_bytes());
        Self(hash.finalize().into())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that a file name spells, if it spells one.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::CacheKey;

    #[test]
    fn every_field_counts_and_none_runs_into_the_next() {
        let options = |list: &[&str]| list.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        let keys = [
            CacheKey::new("text", &options(&["-a", "-b"]), "sm_90", (13, 0)),
            CacheKey::new("text ", &options(&["-a", "-b"]), "sm_90", (13, 0)),
            CacheKey::new("text", &options(&["-b", "-a"]), "sm_90", (13, 0)),
            CacheKey::new("text", &options(&["-a-b"]), "sm_90", (13, 0)),
            CacheKey::new("text", &options(&["-a"]), "-bsm_90", (13, 0)),
            CacheKey::new("text", &options(&["-a", "-b"]), "sm_90a", (13, 0)),
            CacheKey::new("text", &options(&["-a", "-b"]), "sm_90", (13, 1)),
            CacheKey::new("text", &options(&["-a", "-b"]), "sm_90", (12, 0)),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "key {index} is not its own");
            assert_eq!(CacheKey::parse(&key.to_string()), Some(*key));
        }
    }

    #[test]
    fn only_a_key_parses_as_a_key() {
        for name in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(CacheKey::parse(name), None, "{name}");
        }
    }
}
