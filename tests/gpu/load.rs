//! Requests of random lengths and budgets, one after the other: memory stays flat. `IHIP_LOAD_SECONDS` says for how long,
//! on the CPU device or on a GPU as everything here.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, GRAIN, Precision};
use ihip_runtime::kv::Budget;
use ihip_tests::support::failing::Failing;
use ihip_tests::support::sample::Random;

use super::device::{Attention, HEAD_DIM, KV_HEADS, ROW};
use super::noise;

/// How long it takes where nobody says.
const SECONDS: u64 = 3;
/// Requests that are served in any case.
const LEAST: usize = 60;
/// Requests by which everything has come that stays, those that take most among them.
const WARM: usize = 15;
/// Bytes by which what a device says of itself may differ where as much is allocated: it gives memory in pieces, and keys and
/// values of each of two layers end in one.
const PIECES: u64 = 2 * 2 * GRAIN as u64;
/// Bytes of a token: keys and values of two layers.
const TOKEN: u64 = (2 * 2 * KV_HEADS * HEAD_DIM * size_of::<f32>()) as u64;

/// What a process and a device hold, in bytes.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Resident set of the process.
    resident: u64,
    /// Keys, values and all that goes with them by tier, as allocated: the GPU's, and pinned memory.
    tiers: [u64; 2],
    /// Taken of the device's memory, as it says.
    device: u64,
}

/// A device under load.
struct Load<'a, D: Device> {
    device: &'a mut D,
    counting: &'a Failing,
    /// Tokens of the longest request, and bytes of the GPU that no request does without.
    longest: usize,
    least: u64,
    free: u64,
    draws: Random,
}

impl<D: Device> Load<'_, D> {
    fn held(device: &D, counting: &Failing, free: u64) -> Held {
        let left = device.available_bytes().unwrap().unwrap_or(0);
        Held { resident: resident_bytes(), tiers: counting.held(), device: free.saturating_sub(left) }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.draws.next() % end
    }

    /// Serves one request; what is held at its end, and after it.
    fn serve(&mut self, number: usize) -> [Held; 2] {
        // The first ones take most: the longest, with all and with the least on the GPU.
        let tokens = if number < 4 { self.longest } else { 200 + self.below(self.longest as u64 - 200) as usize };
        let all = tokens as u64 * TOKEN;
        let gpu = match number {
            0 | 2 => 2 * all + self.least,
            1 | 3 => self.least,
            _ => self.least + self.below(2 * all),
        };
        let new = 1 + self.below(64) as usize;
        let qkv = noise(self.draws.next(), tokens * ROW);
        self.device.limit_kv(Budget { gpu, ..Budget::UNLIMITED }, 64);
        let (counting, free, mut at_end) = (self.counting, self.free, None);
        let (outputs, _) = Attention::observed(self.device, &qkv, (tokens - new, 64), true, &mut |device, _, step| {
            if step.start + step.rows == tokens {
                at_end = Some(Self::held(device, counting, free));
            }
        });
        assert!(outputs.iter().all(|output| output.is_finite()));
        drop((qkv, outputs));
        let after = Self::held(self.device, counting, free);
        assert_eq!(after.tiers, [0, 0], "request {number} of {tokens} tokens");
        [at_end.expect("the last step was seen"), after]
    }

    #[expect(clippy::print_stdout, reason = "the figures are what a long run is for")]
    fn run(&mut self, seconds: u64) {
        let start = Instant::now();
        let (mut number, mut seen) = (0, [Seen::default(); 4]);
        loop {
            // How far the run is: by its time, and by the requests that it has in any case.
            let time = start.elapsed().as_secs_f64() / Duration::from_secs(seconds).as_secs_f64();
            let done = time.min(number as f64 / LEAST as f64);
            if done >= 1.0 {
                break;
            }
            for held in self.serve(number) {
                for (seen, bytes) in seen.iter_mut().zip(held.kinds()) {
                    seen.note(bytes, number < WARM, done);
                }
            }
            number += 1;
        }
        println!("{number} requests in {:.0} s on {}", start.elapsed().as_secs_f64(), self.device.name());
        for (name, Seen { warm, most, low: [first, _, last] }) in KINDS.into_iter().zip(seen) {
            println!(
                "{name}: at most {warm} bytes at first and {most} after; at least {first} at first and {last} at last"
            );
        }
        for (kind, Seen { warm, most, low: [first, _, last] }) in seen.into_iter().enumerate() {
            let (name, slack) = (KINDS[kind], warm / 100);
            // Which buffers share a piece of what a device gives differs from request to request.
            let pieces = if kind == DEVICE { PIECES } else { 0 };
            // Neither the most that is held grows, nor what is left between requests.
            assert!(most <= warm + slack.max(pieces), "{name} grew");
            assert!(last <= first + slack, "{name} is left behind");
        }
    }
}

const DEVICE: usize = 1;
const KINDS: [&str; 4] = ["resident set", "device", "GPU tier", "pinned"];

impl Held {
    /// In the order of [`KINDS`].
    const fn kinds(self) -> [u64; 4] {
        let [gpu, pinned] = self.tiers;
        [self.resident, self.device, gpu, pinned]
    }
}

/// What was seen of one kind of memory, in bytes.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The most while requests of all kinds came for the first time, and after that.
    warm: u64,
    most: u64,
    /// The least of each third of the time after that.
    low: [u64; 3],
}

impl Default for Seen {
    fn default() -> Self {
        Self { warm: 0, most: 0, low: [u64::MAX; 3] }
    }
}

impl Seen {
    /// `done` is the share of the run before it.
    fn note(&mut self, bytes: u64, is_warming: bool, done: f64) {
        if is_warming {
            self.warm = self.warm.max(bytes);
            return;
        }
        self.most = self.most.max(bytes);
        let least = &mut self.low[((3.0 * done) as usize).min(2)];
        *least = bytes.min(*least);
    }
}

/// Bytes that the process has in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("it is a number");
    pages * 4096
}

#[test]
#[ignore = "is run in a process of its own: nothing else may take memory meanwhile"]
fn requests_in_a_loop() {
    let seconds = std::env::var("IHIP_LOAD_SECONDS").ok().map(|text| text.parse().expect("a whole number of seconds"));
    let counting = Arc::new(Failing::default());
    let draws = Random(seconds.unwrap_or(SECONDS));
    if std::env::var("IHIP_TEST_DEVICE").as_deref() == Ok("cuda") {
        let mut device = CudaDevice::new(0, Precision::F32).unwrap();
        device.account_to(counting.clone());
        let free = device.available_bytes().unwrap().unwrap();
        let mut load = Load { device: &mut device, counting: &counting, longest: 24_000, least: 0, free, draws };
        load.run(seconds.unwrap_or(SECONDS));
    } else {
        let mut device = CpuDevice::new(2).unwrap();
        device.allocate_from(counting.clone());
        // Pages of a step's tokens and two more, of keys and of values.
        let least = (64 / 16 + 2) * 16 * TOKEN;
        let mut load = Load { device: &mut device, counting: &counting, longest: 6000, least, free: 0, draws };
        load.run(seconds.unwrap_or(SECONDS));
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what a long run is for")]
fn memory_stays_flat_under_load() {
    let name = concat!(module_path!(), "::requests_in_a_loop");
    let name = name.split_once("::").map_or(name, |(_, within)| within);
    let arguments = [name, "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let program = std::env::current_exe().expect("it has a path");
    // What is freed goes back to the system: what stays is what is held, and not what the allocator keeps for each thread and size.
    let allocator = [
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_MMAP_THRESHOLD_", "65536"),
        ("MALLOC_TOP_PAD_", "0"),
        ("MALLOC_TRIM_THRESHOLD_", "0"),
        ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"),
    ];
    let output = Command::new(program).args(arguments).envs(allocator).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains(" requests in "), "{said}");
}
