//! Memory that kernels see: buffers between guard pages, so that what lies outside cannot be touched unnoticed.

use std::collections::BTreeMap;
use std::sync::Mutex;

use half::{bf16, f16};

/// What nobody has written yet: NaN in every float type, −1 as an integer, far out of range as an index.
pub(super) const POISON: u8 = 0xff;
/// Bytes in front of a buffer that are checked after each launch.
const RED_ZONE: usize = 64;
/// CUDA's widest access; a buffer ends this close to its guard page.
const WIDEST: usize = 16;

/// Bytes of a page of the host.
pub(super) fn page_bytes() -> usize {
    // SAFETY: sysconf reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("the system knows its page size")
}

/// An element type that host and kernels lay out alike.
///
/// # Safety
/// Every pattern of bits is a value, and there is no padding.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: plain numbers.
unsafe impl Plain for f64 {}
// SAFETY: plain numbers.
unsafe impl Plain for i32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u16 {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: a u16 inside.
unsafe impl Plain for bf16 {}
// SAFETY: a u16 inside.
unsafe impl Plain for f16 {}
// SAFETY: two plain numbers of one size.
unsafe impl Plain for [f32; 2] {}

/// A buffer as kernels see it: 16-byte aligned, nothing readable behind its last 16 bytes or in the page before it.
#[derive(Debug)]
pub struct Memory {
    name: String,
    mapping: *mut u8,
    mapped: usize,
    data: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is the buffer's own; what runs on several threads of the host at once are kernels, whose races
// are the emulated ones.
unsafe impl Send for Memory {}
// SAFETY: as for Send; the methods that write take `&mut self`.
unsafe impl Sync for Memory {}

/// Every living buffer by the start of its mapping: (end of the mapping, start of the data, bytes, name).
static BUFFERS: Mutex<BTreeMap<usize, (usize, usize, usize, String)>> = Mutex::new(BTreeMap::new());

/// Where an address lies, seen from the nearest buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the buffer.
    pub buffer: String,
    /// Its size in bytes.
    pub bytes: usize,
    /// The address, counted in bytes from the buffer's start.
    pub offset: isize,
}

impl Memory {
    /// A buffer that nobody has written.
    #[must_use]
    pub fn new(name: &str, bytes: usize) -> Self {
        let page = page_bytes();
        let body = (bytes.next_multiple_of(WIDEST) + RED_ZONE).next_multiple_of(page);
        let mapped = body + 2 * page;
        // SAFETY: an anonymous mapping at an address of the system's choice touches no memory that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED, "no memory for buffer {name} of {bytes} bytes");
        let mapping = mapping.cast::<u8>();
        let data = mapping.wrapping_add(page + body - bytes.next_multiple_of(WIDEST));
        // SAFETY: the pages between the outermost two of the mapping above.
        unsafe {
            let refused = libc::mprotect(mapping.add(page).cast(), body, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(refused, 0, "no memory for buffer {name} of {bytes} bytes");
            mapping.add(page).write_bytes(POISON, body);
        }
        BUFFERS
            .lock()
            .expect("the register of buffers is whole")
            .insert(mapping as usize, (mapping as usize + mapped, data as usize, bytes, name.to_owned()));
        Self { name: name.to_owned(), mapping, mapped, data, bytes }
    }

    /// A buffer of `values`.
    #[must_use]
    pub fn of<T: Plain>(name: &str, values: &[T]) -> Self {
        let mut memory = Self::new(name, size_of_val(values));
        memory.write(0, values);
        memory
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its address, for a kernel's argument.
    #[must_use]
    pub const fn address(&self) -> *mut u8 {
        self.data
    }

    /// Writes `values` from byte `offset` on.
    pub fn write<T: Plain>(&mut self, offset: usize, values: &[T]) {
        let bytes = size_of_val(values);
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} bytes into {} of {}", self.name, self.bytes);
        // SAFETY: in bounds by the assertion; T has no padding.
        unsafe {
            self.data.add(offset).copy_from_nonoverlapping(values.as_ptr().cast(), bytes);
        };
    }

    /// Everything in it.
    #[must_use]
    pub fn read<T: Plain>(&self) -> Vec<T> {
        let count = self.bytes / size_of::<T>();
        let mut values: Vec<T> = Vec::with_capacity(count);
        // SAFETY: the buffer holds `count` elements, every pattern of bits is a T, and the copy fills them all.
        unsafe {
            let to: *mut u8 = values.as_mut_ptr().cast();
            to.copy_from_nonoverlapping(self.data, count * size_of::<T>());
            values.set_len(count);
        }
        values
    }

    /// The first byte beside the data that was written, as an offset from the data's start.
    pub(super) fn overrun(&self) -> Option<isize> {
        let slack = self.bytes.next_multiple_of(WIDEST) - self.bytes;
        // SAFETY: both stretches lie in the readable pages of the mapping.
        let (before, after) = unsafe {
            (
                std::slice::from_raw_parts(self.data.sub(RED_ZONE), RED_ZONE),
                std::slice::from_raw_parts(self.data.add(self.bytes), slack),
            )
        };
        let written = |zone: &[u8]| zone.iter().position(|&byte| byte != POISON);
        let front = written(before).map(|at| at.cast_signed() - RED_ZONE.cast_signed());
        front.or_else(|| written(after).map(|at| (self.bytes + at).cast_signed()))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        BUFFERS.lock().expect("the register of buffers is whole").remove(&(self.mapping as usize));
        // SAFETY: the mapping is this buffer's own, and kernels run only while it is borrowed.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped) };
    }
}

/// The buffer whose mapping, guard pages included, holds `address`.
pub(super) fn place(address: usize) -> Option<Place> {
    let buffers = BUFFERS.lock().expect("the register of buffers is whole");
    let (_, (end, data, bytes, name)) = buffers.range(..=address).next_back()?;
    (address < *end).then(|| Place {
        buffer: name.clone(),
        bytes: *bytes,
        offset: address.cast_signed() - data.cast_signed(),
    })
}
