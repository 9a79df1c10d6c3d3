//! What the host bodies of the prelude call, and what a warp does once all its lanes have arrived.

use std::fmt;

use half::{bf16, f16};

use super::copies::Transfer;
use super::error::Failure;
use super::mistake::{Mistake, Site};
use super::shadow::Access;
use super::thread::{Block, LANES, Thread, arrive, fail};

/// A primitive that several threads reach together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collective {
    /// `sync_block`.
    SyncBlock,
    /// `sync_warp`.
    SyncWarp,
    /// `shuffle` and `shuffle_xor`.
    Shuffle,
    /// `ballot`.
    Ballot,
    /// `load_matrix_x4`.
    LoadMatrix,
    /// `load_matrix_x4_transposed`.
    LoadMatrixTransposed,
    /// `mma_16x8x16`.
    Mma,
}

impl fmt::Display for Collective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::SyncBlock => "sync_block",
            Self::SyncWarp => "sync_warp",
            Self::Shuffle => "shuffle",
            Self::Ballot => "ballot",
            Self::LoadMatrix => "load_matrix_x4",
            Self::LoadMatrixTransposed => "load_matrix_x4_transposed",
            Self::Mma => "mma_16x8x16",
        })
    }
}

/// A thread's part of a collective. Addresses are of variables on its stack, which stays as it is while it waits.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    SyncBlock,
    SyncWarp,
    /// The lane to read from, and this lane's value until it is the other's.
    Shuffle {
        value: u64,
        lane: usize,
    },
    /// This lane's bit until it is all lanes'.
    Ballot(u32),
    LoadMatrix {
        to: *mut [u32; 4],
        row: *const [u16; 8],
        transposed: bool,
    },
    Mma {
        d: *mut [f32; 4],
        a: *const [u32; 4],
        b: *const [u32; 2],
        is_bf16: bool,
    },
}

impl Operation {
    pub(super) const fn collective(&self) -> Collective {
        match self {
            Self::SyncBlock => Collective::SyncBlock,
            Self::SyncWarp => Collective::SyncWarp,
            Self::Shuffle { .. } => Collective::Shuffle,
            Self::Ballot(_) => Collective::Ballot,
            Self::LoadMatrix { transposed: false, .. } => Collective::LoadMatrix,
            Self::LoadMatrix { transposed: true, .. } => Collective::LoadMatrixTransposed,
            Self::Mma { .. } => Collective::Mma,
        }
    }
}

/// Does what the lanes of the warp of `thread` have arrived for.
///
/// # Safety
/// All lanes wait in the same collective.
pub(super) unsafe fn complete(block: &mut Block, thread: *mut Thread) {
    // SAFETY: the caller's promise; a lane's operation holds addresses of its own variables.
    unsafe {
        let index = (*thread).index;
        let lanes: [*mut Thread; LANES] = std::array::from_fn(|lane| block.lane(index, lane));
        match (*thread).operation {
            Operation::SyncBlock | Operation::SyncWarp => {}
            Operation::Shuffle { .. } => {
                let values = lanes.map(|lane| match (*lane).operation {
                    Operation::Shuffle { value, .. } => value,
                    _ => unreachable!("all lanes shuffle"),
                });
                for lane in lanes {
                    if let Operation::Shuffle { value, lane } = &mut (*lane).operation {
                        *value = values[*lane];
                    }
                }
            }
            Operation::Ballot(_) => {
                let all = lanes.iter().enumerate().fold(0, |all, (number, &lane)| match (*lane).operation {
                    Operation::Ballot(bit) => all | bit << number,
                    _ => unreachable!("all lanes vote"),
                });
                for lane in lanes {
                    (*lane).operation = Operation::Ballot(all);
                }
            }
            Operation::LoadMatrix { .. } => load_matrices(&lanes),
            Operation::Mma { is_bf16: true, .. } => {
                multiply(&lanes, |bits| bf16::from_bits(bits).to_f64());
            }
            Operation::Mma { is_bf16: false, .. } => {
                multiply(&lanes, |bits| f16::from_bits(bits).to_f64());
            }
        }
    }
}

/// Four 8×8 matrices: row `i % 8` of matrix `i / 8` lies where lane `i` says.
unsafe fn load_matrices(lanes: &[*mut Thread; LANES]) {
    // SAFETY: as in `complete`; the rows were found to be aligned shared memory on arrival.
    unsafe {
        let rows = lanes.map(|lane| match (*lane).operation {
            Operation::LoadMatrix { row, .. } => *row,
            _ => unreachable!("all lanes load"),
        });
        for (number, lane) in lanes.iter().enumerate() {
            let Operation::LoadMatrix { to, transposed, .. } = (**lane).operation else {
                continue;
            };
            *to = std::array::from_fn(|matrix| {
                let element = |pair: usize| {
                    let (row, column) = (number / 4, 2 * (number % 4) + pair);
                    let (row, column) = if transposed { (column, row) } else { (row, column) };
                    u32::from(rows[8 * matrix + row][column])
                };
                element(0) | element(1) << 16
            });
        }
    }
}

/// d += a · b over the warp's fragments, laid out as the PTX manual says for m16n8k16.
///
/// Sums are f64, rounded once: hardware adds in an order and with a truncation of its own.
unsafe fn multiply(lanes: &[*mut Thread; LANES], decode: impl Fn(u16) -> f64) {
    let mut left = [[0.0; 16]; 16];
    let mut right = [[0.0; 16]; 8];
    let pair = |bits: u32| [decode((bits & 0xffff) as u16), decode((bits >> 16) as u16)];
    // SAFETY: as in `complete`.
    unsafe {
        for (number, lane) in lanes.iter().enumerate() {
            let Operation::Mma { a, b, .. } = (**lane).operation else {
                continue;
            };
            let (group, first) = (number / 4, 2 * (number % 4));
            for (register, &bits) in (*a).iter().enumerate() {
                let column = first + 8 * (register / 2);
                left[group + 8 * (register % 2)][column..column + 2].copy_from_slice(&pair(bits));
            }
            for (register, &bits) in (*b).iter().enumerate() {
                let row = first + 8 * register;
                right[group][row..row + 2].copy_from_slice(&pair(bits));
            }
        }
        for (number, lane) in lanes.iter().enumerate() {
            let Operation::Mma { d, .. } = (**lane).operation else {
                continue;
            };
            for (register, sum) in (*d).iter_mut().enumerate() {
                let row = &left[number / 4 + 8 * (register / 2)];
                let column = &right[2 * (number % 4) + register % 2];
                let product: f64 = row.iter().zip(column).map(|(a, b)| a * b).sum();
                *sum = (f64::from(*sum) + product) as f32;
            }
        }
    }
}

/// The functions that `emulator.h` calls, laid out as its `Calls`.
#[repr(C)]
pub(super) struct Calls {
    sync_block: unsafe extern "C" fn(*mut Thread, usize),
    sync_warp: unsafe extern "C" fn(*mut Thread, usize),
    exchange: unsafe extern "C" fn(*mut Thread, u64, u32, usize) -> u64,
    ballot: unsafe extern "C" fn(*mut Thread, bool, usize) -> u32,
    shared: unsafe extern "C" fn(*mut Thread, usize, usize, usize) -> *mut u8,
    shared_dynamic: unsafe extern "C" fn(*mut Thread) -> *mut u8,
    copy_async: unsafe extern "C" fn(*mut Thread, *mut u8, *const u8, bool, usize),
    copy_async_commit: unsafe extern "C" fn(*mut Thread),
    copy_async_wait: unsafe extern "C" fn(*mut Thread, u32),
    load_matrix: unsafe extern "C" fn(*mut Thread, *mut [u32; 4], *const [u16; 8], bool, usize),
    mma: unsafe extern "C" fn(*mut Thread, *mut [f32; 4], *const [u32; 4], *const [u32; 2], bool, usize),
    access: unsafe extern "C" fn(*mut Thread, usize, usize, Access, usize),
    mistake: unsafe extern "C" fn(*mut Thread, u32, u64, *const Site, usize),
}

pub(super) static CALLS: Calls = Calls {
    sync_block,
    sync_warp,
    exchange,
    ballot,
    shared,
    shared_dynamic,
    copy_async,
    copy_async_commit,
    copy_async_wait,
    load_matrix,
    mma,
    access,
    mistake,
};

// Each of the functions below is called by the thread that runs, with its own record, whose block outlives it.

unsafe extern "C" fn sync_block(thread: *mut Thread, caller: usize) {
    // SAFETY: see above.
    unsafe { arrive(thread, Operation::SyncBlock, caller) };
}

unsafe extern "C" fn sync_warp(thread: *mut Thread, caller: usize) {
    // SAFETY: see above.
    unsafe { arrive(thread, Operation::SyncWarp, caller) };
}

unsafe extern "C" fn exchange(thread: *mut Thread, value: u64, lane: u32, caller: usize) -> u64 {
    // SAFETY: see above.
    unsafe {
        arrive(thread, Operation::Shuffle { value, lane: lane as usize }, caller);
        match (*thread).operation {
            Operation::Shuffle { value, .. } => value,
            _ => unreachable!("nothing else writes a lane's operation"),
        }
    }
}

unsafe extern "C" fn ballot(thread: *mut Thread, predicate: bool, caller: usize) -> u32 {
    // SAFETY: see above.
    unsafe {
        arrive(thread, Operation::Ballot(u32::from(predicate)), caller);
        match (*thread).operation {
            Operation::Ballot(all) => all,
            _ => unreachable!("nothing else writes a lane's operation"),
        }
    }
}

unsafe extern "C" fn shared(thread: *mut Thread, key: usize, bytes: usize, caller: usize) -> *mut u8 {
    // SAFETY: see above.
    unsafe {
        let array = (*(*thread).owner).shared.array(key, bytes);
        array.unwrap_or_else(|failure| fail(thread, caller, failure))
    }
}

unsafe extern "C" fn shared_dynamic(thread: *mut Thread) -> *mut u8 {
    // SAFETY: see above.
    unsafe { (*(*thread).owner).shared.dynamic() }
}

unsafe extern "C" fn copy_async(thread: *mut Thread, to: *mut u8, from: *const u8, valid: bool, caller: usize) {
    // SAFETY: see above; alignment, the target and the source are checked before any byte is touched.
    unsafe {
        let block = &mut *(*thread).owner;
        let index = (*thread).index;
        if !block.shared.holds(to as usize) {
            fail(thread, caller, Failure::NotShared { primitive: "copy_async_16" });
        }
        for address in [to as usize, if valid { from as usize } else { 0 }] {
            if !address.is_multiple_of(16) {
                fail(thread, caller, Failure::Misaligned { primitive: "copy_async_16", beyond: address % 16 });
            }
        }
        let source = if valid { block.access(index, from as usize, 16, Access::Read) } else { Ok(()) };
        if let Err(failure) = source.and_then(|()| block.shared.start_copy(index, to as usize)) {
            fail(thread, caller, failure);
        }
        block.start_copy(index, Transfer::new(to, valid.then_some(from)));
    }
}

unsafe extern "C" fn copy_async_commit(thread: *mut Thread) {
    // SAFETY: see above.
    unsafe { (&mut (*(*thread).owner).copies)[(*thread).index].commit() };
}

unsafe extern "C" fn copy_async_wait(thread: *mut Thread, pending: u32) {
    // SAFETY: see above; the transfers were checked when they were started.
    unsafe {
        let (block, index) = (&mut *(*thread).owner, (*thread).index);
        for mut transfer in block.copies[index].end(pending as usize) {
            transfer.make();
            block.shared.end_copy(index, transfer.shared as usize);
        }
    }
}

unsafe extern "C" fn load_matrix(
    thread: *mut Thread,
    to: *mut [u32; 4],
    row: *const [u16; 8],
    transposed: bool,
    caller: usize,
) {
    let primitive = if transposed { "load_matrix_x4_transposed" } else { "load_matrix_x4" };
    // SAFETY: see above.
    unsafe {
        let block = &mut *(*thread).owner;
        if !block.shared.holds(row as usize) {
            fail(thread, caller, Failure::NotShared { primitive });
        }
        if !(row as usize).is_multiple_of(16) {
            fail(thread, caller, Failure::Misaligned { primitive, beyond: row as usize % 16 });
        }
        if let Err(failure) = block.access((*thread).index, row as usize, 16, Access::Read) {
            fail(thread, caller, failure);
        }
        arrive(thread, Operation::LoadMatrix { to, row, transposed }, caller);
    }
}

unsafe extern "C" fn mma(
    thread: *mut Thread,
    d: *mut [f32; 4],
    a: *const [u32; 4],
    b: *const [u32; 2],
    is_bf16: bool,
    caller: usize,
) {
    // SAFETY: see above.
    unsafe { arrive(thread, Operation::Mma { d, a, b, is_bf16 }, caller) };
}

unsafe extern "C" fn access(thread: *mut Thread, address: usize, bytes: usize, access: Access, caller: usize) {
    // SAFETY: see above.
    unsafe {
        if let Err(failure) = (*(*thread).owner).access((*thread).index, address, bytes, access) {
            fail(thread, caller, failure);
        }
    }
}

unsafe extern "C" fn mistake(thread: *mut Thread, number: u32, value: u64, site: *const Site, caller: usize) {
    // SAFETY: see above; the compiler laid out the site.
    unsafe { fail(thread, caller, Mistake::ALL[number as usize].failure(value, site)) }
}
