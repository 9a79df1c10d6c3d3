//! What the compiler's own checks find: wrong before any memory is touched.

use std::ffi::{CStr, c_char};

use super::error::Failure;

/// Which check.
#[derive(Clone, Copy)]
pub(super) enum Mistake {
    Misaligned,
    Index,
    Overflown,
    Shifted,
    Divided,
}

/// What the compiler says about the place: all checks begin with these, and that of indices has the last as well.
#[repr(C)]
pub(super) struct Site {
    file: *const c_char,
    line: u32,
    column: u32,
    kind: *const Type,
    index: *const Type,
}

/// The compiler's description of a type: an integer or not, twice the logarithm of its bits plus its sign, its name.
#[repr(C)]
struct Type {
    kind: u16,
    information: u16,
    name: [c_char; 0],
}

impl Mistake {
    /// By their numbers in `emulator.h`.
    pub(super) const ALL: [Self; 5] = [Self::Misaligned, Self::Index, Self::Overflown, Self::Shifted, Self::Divided];

    /// What `value`, an address or index or operand, means at `site`.
    ///
    /// # Safety
    /// The compiler laid out `site` for this check.
    pub(super) unsafe fn failure(self, value: u64, site: *const Site) -> Failure {
        // SAFETY: the caller's promise; names end with a zero, and only an index's site is read beyond its first type.
        let (name, bits) = unsafe {
            let name = CStr::from_ptr((&raw const (*(*site).kind).name).cast());
            let name = name.to_string_lossy().trim_matches('\'').to_owned();
            let bits = matches!(self, Self::Index).then(|| 1_u32 << ((*(*site).index).information >> 1));
            (name, bits.unwrap_or(u64::BITS))
        };
        match self {
            Self::Misaligned => Failure::MisalignedValue { address: value as usize, name },
            Self::Index => {
                let unused = u64::BITS - bits;
                Failure::Index { index: (value << unused).cast_signed() >> unused, name }
            }
            Self::Overflown => Failure::Overflow { name },
            Self::Shifted => Failure::Shift { name },
            Self::Divided => Failure::Divided { name },
        }
    }
}
