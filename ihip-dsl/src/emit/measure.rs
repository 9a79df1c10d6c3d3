//! Kernels that measurements need besides those of a plan: data that looks random, and readers of memory.

use super::cached;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Element, Family, Kernel};
use crate::KvType;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeasureKernel {
    /// Fills `count` elements with noise of mean 0 and variance 1, the same for the same `seed`; any grid will do.
    Noise(KvType),
    /// Reads `count` vectors of 16 bytes; any grid will do. A word is written where a thread saw nothing but zeros,
    /// which keeps the compiler from leaving the loads out.
    Read,
    /// Reads `count` rows of [`GATHERED_ROW`] bytes, each drawn from `rows` of them, the same for the same `seed`; any grid
    /// will do. What it writes is as with [`MeasureKernel::Read`].
    Gather,
}

/// Bytes of a row that [`MeasureKernel::Gather`] reads: the least of a head's part of a page that lies with the host.
pub const GATHERED_ROW: usize = 2048;

/// Threads of a block.
const THREADS: u32 = 512;

impl MeasureKernel {
    /// Name of the entry point.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Noise(element) => format!("ihip_measure_noise_{}", element.word()),
            Self::Read => "ihip_measure_read".to_owned(),
            Self::Gather => "ihip_measure_gather".to_owned(),
        }
    }

    /// The kernel.
    #[must_use]
    pub fn emit(self) -> Kernel {
        let name = self.name();
        let i32 = |name| Argument { name, kind: ArgumentKind::I32 };
        let output = |name, element| Argument { name, kind: ArgumentKind::Output(element) };
        let from = Argument { name: "from", kind: ArgumentKind::Input(Element::U32) };
        let seen = output("seen", Element::U32);
        let (heading, origin, body, arguments) = match self {
            Self::Noise(element) => {
                let arguments = vec![output("out", element.into()), i32("count"), i32("seed")];
                let body = if element.most().is_some() { NOISE_BYTES } else { NOISE_FLOATS };
                (NOISE_HEADING, "noise", body, arguments)
            }
            Self::Read => (READ_HEADING, "read", READ, vec![from, i32("count"), seen]),
            Self::Gather => {
                (GATHER_HEADING, "gather", GATHER, vec![from, i32("count"), i32("rows"), i32("seed"), seen])
            }
        };
        let mut writer = Writer::new(heading, &format!("measure, {origin}"));
        if let Self::Noise(element) = self {
            cached::define(&mut writer, element);
            writer.text(&format!("using Element = {};", Element::from(element).word()));
        }
        writer.constant("THREADS", THREADS, "threads of a block");
        if self == Self::Gather {
            writer.constant("ROW", GATHERED_ROW / 16, "pieces of 16 bytes to a row");
        }
        let body = body.replace("$MIX\n", MIX.trim_start_matches('\n'));
        writer.text(&body.replace("NAME", &name));
        let text = writer.finish();
        Kernel { name, family: Family::Measure, text, arguments, threads: THREADS, shared_bytes: 0 }
    }
}

const NOISE_HEADING: &str = "Noise of mean 0 and variance 1: the sum of four uniform numbers, within ±3.5.";

const MIX: &str = r"
// A permutation of the 32-bit integers under which neighbours have nothing in common.
inline unsigned mix(unsigned x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}
";

/// Bytes that are numbers somewhere and parts of scales elsewhere: a bf16 that two of them make is less than 2.
const NOISE_BYTES: &str = r"
$MIX

KERNEL(THREADS) NAME(Element* out, int count, int seed) {
    const unsigned threads = gridDim.x * THREADS;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < static_cast<unsigned>(count); i += threads)
        out[i] = static_cast<unsigned char>(mix(i ^ mix(seed)) & 0xbfu);
}
";

const NOISE_FLOATS: &str = r"
$MIX

KERNEL(THREADS) NAME(Element* out, int count, int seed) {
    const unsigned threads = gridDim.x * THREADS;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < static_cast<unsigned>(count); i += threads) {
        const unsigned one = mix(i ^ mix(seed)), other = mix(one ^ 0x9e3779b9u);
        const int sum = static_cast<int>((one & 0xffffu) + (one >> 16) + (other & 0xffffu) + (other >> 16));
        // Four numbers of [0, 65535] have a variance of 4 * 65536^2 / 12.
        out[i] = from_float<Element>(static_cast<float>(sum - 131070) * (1.7320508f / 65536.0f));
    }
}
";

const READ_HEADING: &str = "Reads memory, eight loads of 16 bytes a thread under way at a time.";

const READ: &str = r"
struct alignas(16) Words {
    unsigned at[4];
};

KERNEL(THREADS) NAME(const unsigned* __restrict__ from, int count, unsigned* seen) {
    const Words* const words = reinterpret_cast<const Words*>(from);
    const int threads = gridDim.x * THREADS;
    unsigned all = 0;
    for (int first = blockIdx.x * THREADS + threadIdx.x; first < count; first += 8 * threads) {
        Words batch[8];
        for (int i = 0; i < 8; ++i) batch[i] = words[min(first + i * threads, count - 1)];
        for (int i = 0; i < 8; ++i) all |= batch[i].at[0] ^ batch[i].at[1] ^ batch[i].at[2] ^ batch[i].at[3];
    }
    if (all == 0) seen[0] = 1;
}
";

const GATHER_HEADING: &str = "Reads rows at random places, a warp each.";

const GATHER: &str = r"
$MIX

struct alignas(16) Words {
    unsigned at[4];
};

KERNEL(THREADS) NAME(const unsigned* __restrict__ from, int count, int rows, int seed, unsigned* seen) {
    const Words* const words = reinterpret_cast<const Words*>(from);
    const int lane = threadIdx.x % 32, warps = gridDim.x * (THREADS / 32);
    unsigned all = 0;
    for (int i = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; i < count; i += warps) {
        const unsigned row = mix(static_cast<unsigned>(i) ^ mix(seed)) % static_cast<unsigned>(rows);
        Words batch[ROW / 32];
        for (int j = 0; j < ROW / 32; ++j) batch[j] = words[row * ROW + 32 * j + lane];
        for (int j = 0; j < ROW / 32; ++j) all |= batch[j].at[0] ^ batch[j].at[1] ^ batch[j].at[2] ^ batch[j].at[3];
    }
    if (all == 0) seen[0] = 1;
}
";
