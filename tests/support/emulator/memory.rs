//! Memory that kernels see: buffers that know which of their bytes have been written, between guard pages.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;

use super::shadow::Access;

/// What nobody has written yet: NaN in every float type, −1 as an integer, far out of range as an index.
pub(super) const POISON: u8 = 0xff;
/// CUDA's widest access; a buffer ends this close to its guard page.
const WIDEST: usize = 16;

/// Bytes of a page of the host.
pub(super) fn page_bytes() -> usize {
    // SAFETY: sysconf reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("the system knows its page size")
}

/// A buffer as kernels see it: 16-byte aligned, with pages around it that nothing may touch.
#[derive(Debug)]
pub struct Memory {
    name: String,
    mapping: *mut u8,
    mapped: usize,
    data: *mut u8,
    bytes: usize,
    /// A bit a byte: whether anyone has written it.
    written: Box<[AtomicU64]>,
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
        let memory = Self::sparse(name, bytes);
        // SAFETY: the bytes are the buffer's own.
        unsafe { memory.data.write_bytes(POISON, bytes) };
        memory
    }

    /// A buffer that nobody has written and of which only what is touched takes memory, however large it is. What
    /// nobody wrote reads as zeros here.
    #[must_use]
    pub fn sparse(name: &str, bytes: usize) -> Self {
        let page = page_bytes();
        let body = bytes.next_multiple_of(WIDEST).next_multiple_of(page);
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
        }
        BUFFERS
            .lock()
            .expect("the register of buffers is whole")
            .insert(mapping as usize, (mapping as usize + mapped, data as usize, bytes, name.to_owned()));
        let written = bytemuck::zeroed_slice_box(bytes.div_ceil(u64::BITS as usize));
        Self { name: name.to_owned(), mapping, mapped, data, bytes, written }
    }

    /// A buffer of `values`.
    #[must_use]
    pub fn of<T: Pod>(name: &str, values: &[T]) -> Self {
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
    pub fn write<T: Pod>(&mut self, offset: usize, values: &[T]) {
        let bytes = size_of_val(values);
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} bytes into {} of {}", self.name, self.bytes);
        // SAFETY: in bounds by the assertion.
        unsafe {
            self.data.add(offset).copy_from_nonoverlapping(values.as_ptr().cast(), bytes);
        };
        mark(&self.written, offset, bytes);
    }

    /// The buffer for launches.
    pub(super) fn region(&self) -> Region {
        Region { start: self.data as usize, bytes: self.bytes, written: &raw const *self.written }
    }

    /// Everything in it.
    #[must_use]
    pub fn read<T: Pod>(&self) -> Vec<T> {
        // SAFETY: the data lies in the readable pages of the mapping, and the values are copied out of it.
        bytemuck::pod_collect_to_vec(unsafe { std::slice::from_raw_parts(self.data, self.bytes) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        BUFFERS.lock().expect("the register of buffers is whole").remove(&(self.mapping as usize));
        // SAFETY: the mapping is this buffer's own, and kernels run only while it is borrowed.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped) };
    }
}

/// A buffer among the arguments of a launch.
pub(super) struct Region {
    start: usize,
    bytes: usize,
    written: *const [AtomicU64],
}

// SAFETY: what it points to is only changed by atomics, and outlives the launch that it is made for.
unsafe impl Sync for Region {}

impl Region {
    /// Whether all of the `bytes` bytes from `address` on are the buffer's.
    pub(super) fn holds(&self, address: usize, bytes: usize) -> bool {
        address >= self.start && address - self.start + bytes <= self.bytes
    }

    /// Does `access` to bytes that it holds; whether they may be read if that is what is done.
    pub(super) fn touch(&self, address: usize, bytes: usize, access: Access) -> bool {
        // SAFETY: the buffer is borrowed while the launch runs.
        let written = unsafe { &*self.written };
        let offset = address - self.start;
        match access {
            Access::Write => {
                mark(written, offset, bytes);
                true
            }
            Access::Read | Access::Update => is_marked(written, offset, bytes),
        }
    }
}

/// The words of `bits` with those of them that stand for the bytes `offset..offset + bytes`.
fn words(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, u64)> {
    let bits = u64::BITS as usize;
    (offset / bits..(offset + bytes).div_ceil(bits)).map(move |word| {
        let first = offset.saturating_sub(word * bits);
        let end = (offset + bytes - word * bits).min(bits);
        (word, u64::MAX >> (bits - (end - first)) << first)
    })
}

fn mark(written: &[AtomicU64], offset: usize, bytes: usize) {
    for (word, mask) in words(offset, bytes) {
        // Most bytes are written many times: a load is cheaper than an atomic.
        if written[word].load(Ordering::Relaxed) & mask != mask {
            written[word].fetch_or(mask, Ordering::Relaxed);
        }
    }
}

fn is_marked(written: &[AtomicU64], offset: usize, bytes: usize) -> bool {
    words(offset, bytes).all(|(word, mask)| written[word].load(Ordering::Relaxed) & mask == mask)
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
