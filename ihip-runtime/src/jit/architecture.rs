//! What kernels are compiled for, and what one of its multiprocessors holds.

use std::fmt;
use std::str::FromStr;

use ihip_dsl::emit::Instructions;

use super::{JitError, Resources};

/// The first compute capability, times ten, that has instructions of its own behind the suffix `a`.
const FIRST_SPECIFIC: u32 = 90;

/// A GPU architecture, such as `sm_90`, or `sm_90a`, whose code runs nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Architecture {
    /// Compute capability times ten.
    capability: u32,
    /// Whether instructions may be used that no later architecture has: the suffix `a`.
    specific: bool,
}

impl Architecture {
    /// Ampere (A100).
    pub const SM_80: Self = Self::of_capability(80);
    /// Hopper (H100, H200).
    pub const SM_90: Self = Self::of_capability(90);
    /// Blackwell (RTX 50).
    pub const SM_120: Self = Self::of_capability(120);
    /// Those that every kernel is compiled for in CI.
    pub const TESTED: [Self; 3] = [Self::SM_80, Self::SM_90, Self::SM_120];

    /// The architecture of a compute capability, such as (9, 0).
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self::of_capability(major * 10 + minor)
    }

    pub(super) const fn of_capability(capability: u32) -> Self {
        Self { capability, specific: false }
    }

    /// The same without its suffix.
    #[must_use]
    pub const fn portable(self) -> Self {
        Self::of_capability(self.capability)
    }

    /// What kernels are compiled for on a GPU of compute capability (major, minor): with its own instructions where
    /// there are texts that use them.
    #[must_use]
    pub const fn of_gpu(major: u32, minor: u32) -> Self {
        let portable = Self::new(major, minor);
        Self { specific: portable.capability == FIRST_SPECIFIC, ..portable }
    }

    /// What the text of kernels for this architecture may use.
    #[must_use]
    pub const fn instructions(self) -> Instructions {
        if self.specific && self.capability == FIRST_SPECIFIC { Instructions::Hopper } else { Instructions::Portable }
    }

    /// Every architecture whose code runs on a GPU of this one as well as its own, itself first: code for sm_90a runs on
    /// an H100, which calls itself sm_90, and so does code for sm_90.
    pub(super) fn alike(self) -> Vec<Self> {
        if self.capability < FIRST_SPECIFIC {
            vec![self]
        } else {
            vec![self, Self { specific: !self.specific, ..self }]
        }
    }

    /// What PTX is compiled for, such as `compute_90a`.
    pub(super) fn virtual_name(self) -> String {
        format!("compute_{}", &self.to_string()["sm_".len()..])
    }

    /// What a multiprocessor holds (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability");
    /// `None` for an architecture that is not in this table.
    #[must_use]
    pub const fn multiprocessor(self) -> Option<Multiprocessor> {
        let (warps, blocks, shared_kib) = match self.capability {
            75 => (32, 16, 64),
            80 => (64, 32, 164),
            86 => (48, 16, 100),
            87 => (48, 16, 164),
            89 => (48, 24, 100),
            90 | 100 | 103 => (64, 32, 228),
            110 => (48, 24, 228),
            120 | 121 => (48, 24, 100),
            _ => return None,
        };
        // From 8.0 on the system keeps 1 KiB of every block's shared memory.
        let reserved_bytes = if self.capability < 80 { 0 } else { 1024 };
        Some(Multiprocessor { warps, blocks, shared_bytes: shared_kib * 1024, reserved_bytes })
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.capability, if self.specific { "a" } else { "" })
    }
}

impl FromStr for Architecture {
    type Err = JitError;

    fn from_str(word: &str) -> Result<Self, JitError> {
        let number = word.strip_prefix("sm_").unwrap_or_default();
        let (number, specific) = number.strip_suffix('a').map_or((number, false), |number| (number, true));
        let digits = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
        let capability = if digits { number.parse().ok() } else { None };
        capability
            .filter(|capability| *capability >= if specific { FIRST_SPECIFIC } else { 10 })
            .map(|capability| Self { capability, specific })
            .ok_or_else(|| JitError::NoSuchArchitecture { word: word.to_owned() })
    }
}

/// What a multiprocessor holds at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiprocessor {
    /// Warps of 32 threads.
    pub warps: u32,
    /// Blocks of threads.
    pub blocks: u32,
    /// Shared memory of all blocks, in bytes.
    pub shared_bytes: u32,
    /// Shared memory that the system takes of every block besides, in bytes.
    pub reserved_bytes: u32,
}

/// Registers of a multiprocessor, the same since compute capability 5.0.
const REGISTERS: u32 = 65_536;
/// Quarters of a multiprocessor, each with its own registers and warps.
const QUARTERS: u32 = 4;
/// Registers are given to a warp in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory is given to a block in units of this many bytes.
const SHARED_UNIT: u32 = 128;

impl Multiprocessor {
    /// Blocks of `threads` threads that are resident together: the least of what warps, registers and shared memory
    /// allow. `dynamic_shared_bytes` is what the launch adds to the kernel's own shared memory.
    #[must_use]
    pub fn resident_blocks(&self, threads: u32, resources: &Resources, dynamic_shared_bytes: u32) -> u32 {
        let warps = threads.div_ceil(32).max(1);
        let warp_registers = (resources.registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let by_registers = REGISTERS / QUARTERS / warp_registers * QUARTERS / warps;
        let shared =
            (resources.shared_bytes + dynamic_shared_bytes + self.reserved_bytes).next_multiple_of(SHARED_UNIT);
        let by_shared = self.shared_bytes.checked_div(shared).unwrap_or(self.blocks);
        (self.warps / warps).min(self.blocks).min(by_registers).min(by_shared)
    }

    /// Share of the warps that can be resident, from 0 to 1.
    #[must_use]
    pub fn occupancy(&self, threads: u32, resources: &Resources, dynamic_shared_bytes: u32) -> f64 {
        let warps = self.resident_blocks(threads, resources, dynamic_shared_bytes) * threads.div_ceil(32);
        f64::from(warps) / f64::from(self.warps)
    }
}

#[cfg(test)]
mod tests {
    use super::{Architecture, JitError, Resources};

    #[test]
    fn a_suffix_is_kept_and_taken_off() {
        let hopper: Architecture = "sm_90a".parse().unwrap();
        assert_eq!(hopper.to_string(), "sm_90a");
        assert_eq!(hopper.virtual_name(), "compute_90a");
        assert_eq!(hopper.portable(), Architecture::SM_90);
        assert_ne!(hopper, Architecture::SM_90);
        for word in ["sm_", "sm_a", "sm_9", "sm_90aa", "sm_+90", "sm90", "90", "sm_90b", "sm_80a", ""] {
            let error = word.parse::<Architecture>().unwrap_err();
            assert!(matches!(error, JitError::NoSuchArchitecture { .. }), "{word}");
        }
    }

    #[test]
    fn code_with_and_without_a_suffix_runs_on_the_same_gpu() {
        let words = |word: &str| {
            let alike = word.parse::<Architecture>().unwrap().alike();
            alike.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(words("sm_90"), ["sm_90", "sm_90a"]);
        assert_eq!(words("sm_120"), ["sm_120", "sm_120a"]);
        assert_eq!(words("sm_90a"), ["sm_90a", "sm_90"]);
        assert_eq!(words("sm_80"), ["sm_80"]);
    }

    #[test]
    fn occupancy_is_the_least_of_warps_registers_blocks_and_shared_memory() {
        let kernel = |registers, shared_bytes| Resources { registers, shared_bytes, ..Resources::default() };
        let of = |architecture: Architecture, threads, resources: Resources, dynamic| {
            let limits = architecture.multiprocessor().unwrap();
            limits.resident_blocks(threads, &resources, dynamic)
        };
        // 2,048 threads of an H100: 16 blocks of 128, and 32 registers a thread fill the file exactly.
        assert_eq!(of(Architecture::SM_90, 128, kernel(32, 0), 0), 16);
        // 168 registers: 5,376 a warp, 3 warps a quarter, 12 in all, 3 blocks of 4.
        assert_eq!(of(Architecture::SM_90, 128, kernel(168, 0), 0), 3);
        // 76,000 bytes and 1,024 of the system are 77,056 in units of 128: 3 of 233,472, 2 of 167,936, 1 of 102,400.
        assert_eq!(of(Architecture::SM_90, 128, kernel(32, 1_000), 75_000), 3);
        assert_eq!(of(Architecture::SM_80, 128, kernel(32, 1_000), 75_000), 2);
        assert_eq!(of(Architecture::SM_120, 128, kernel(32, 1_000), 75_000), 1);
        // Blocks of one warp: 32 of them are half the warps.
        let hopper = Architecture::SM_90.multiprocessor().unwrap();
        assert!((hopper.occupancy(32, &kernel(16, 0), 0) - 0.5).abs() < 1e-12);
        assert_eq!(Architecture::new(3, 5).multiprocessor(), None);
    }
}
