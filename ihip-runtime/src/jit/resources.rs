//! What a kernel takes of a multiprocessor, as the compiler reports it.

/// Registers, spills and shared memory of one kernel, from `--ptxas-options=-v`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack frame: arrays that did not fit registers, and spills.
    pub stack_bytes: u32,
    /// Bytes that a thread's spills store.
    pub spill_store_bytes: u32,
    /// Bytes that a thread's spills load.
    pub spill_load_bytes: u32,
    /// Static shared memory of a block; what a launch adds to it is not known to the compiler.
    pub shared_bytes: u32,
}

impl Resources {
    /// Reads the compiler's log:
    ///
    /// ```text
    /// ptxas info    : Function properties for name
    /// ptxas         .     256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    /// ptxas info    : Used 40 registers, used 1 barriers, 256 bytes cumulative stack size, 308 bytes smem
    /// ```
    pub(super) fn read(log: &str, entry: &str) -> Option<Self> {
        let mut lines = log.lines().skip_while(|line| {
            line.split_once("Function properties for ").is_none_or(|(_, name)| name.trim() != entry)
        });
        let frame = lines.find(|line| line.contains("bytes stack frame"))?;
        let used = lines.find(|line| line.contains("Used "))?;
        Some(Self {
            registers: number_before(used, " registers")?,
            stack_bytes: number_before(frame, " bytes stack frame")?,
            spill_store_bytes: number_before(frame, " bytes spill stores")?,
            spill_load_bytes: number_before(frame, " bytes spill loads")?,
            // A kernel without shared memory has no such entry.
            shared_bytes: number_before(used, " bytes smem").unwrap_or(0),
        })
    }
}

fn number_before(line: &str, words: &str) -> Option<u32> {
    let end = line.find(words)?;
    let start = line[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |index| index + 1);
    line[start..end].parse().ok()
}
