//! What rows hold, and the kernel that verifies them: it finds a row by the page table as the attention does, in whichever
//! tier that is, and compares it with what follows from its name.

use std::ops::Range;

use ihip_dsl::emit::{Argument, ArgumentKind, Buffer, Element, Family, Kernel, Value};
use ihip_dsl::{Geometry, KvType};
use ihip_runtime::kv::Row;

const PRELUDE: &str = include_str!("../../ihip-dsl/src/emit/prelude.cu");
const VERIFY: &str = include_str!("verify.cu");

/// Threads of a block, each of which verifies one row.
const THREADS: usize = 128;

/// Keys, values, and keys that are probed first, by the numbers that the kernel has for them.
pub const KEYS: Range<usize> = 0..1;
pub const VALUES: Range<usize> = 1..2;
pub const PAGES: Range<usize> = 0..2;
pub const EVERYTHING: Range<usize> = 0..3;

/// Words that the kernel adds to: rows verified, and rows among them that are wrong.
pub const FOUND: usize = 2;

const fn mixed(bits: u32) -> u32 {
    let bits = (bits ^ (bits >> 16)).wrapping_mul(0x7feb_352d);
    let bits = (bits ^ (bits >> 15)).wrapping_mul(0x846c_a68b);
    bits ^ (bits >> 16)
}

/// Elements of a row, whole numbers from −7 to 7 that follow from its name. Every type of cache holds them as they are: the first
/// of 32 neighbours is 7, so that scales are 1.
pub fn elements(request: u32, row: Row, head_dim: usize) -> impl Iterator<Item = f32> {
    let of_request = (row.token << 8) | (row.layer << 5) | ((row.kind as usize) << 4) | row.head;
    let name = mixed(mixed(request) ^ of_request as u32);
    (0..head_dim).map(move |element| {
        let bits = mixed(name.wrapping_add((element / 4 * 4) as u32));
        let number = ((bits >> (8 * (element % 4))) & 255) % 15;
        if element.is_multiple_of(32) { 7.0 } else { number as f32 - 7.0 }
    })
}

/// The rows of keys or values that a request has in a layer: those of some tokens in some regions.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Its number.
    pub request: u32,
    pub layer: usize,
    /// [`KEYS`], [`VALUES`], both in [`PAGES`], or [`EVERYTHING`].
    pub regions: Range<usize>,
    pub tokens: Range<usize>,
}

/// Keys that are kept on the GPU besides.
#[derive(Clone, Copy, Debug)]
pub struct Probed {
    pub sink: usize,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// First halvings whose probes are kept, at least one.
    pub levels: usize,
}

/// The kernel that verifies rows of caches of one shape.
pub struct Verifier {
    pub kernel: Kernel,
    kv_heads: usize,
    probed: Probed,
}

impl Probed {
    /// Keys of a chunk.
    const fn of_chunk(self) -> usize {
        (2 << self.levels) - 2
    }
}

impl Verifier {
    /// # Panics
    /// Where rows are of a type that it does not read.
    pub fn new(geometry: &Geometry, probed: Probed) -> Self {
        let (kv_type, head_dim, page) = (geometry.kv_type, geometry.head_dim as usize, geometry.page as usize);
        let element = Element::from(kv_type);
        let constants = [
            ("KV_HEADS", geometry.kv_heads as usize),
            ("HEAD_DIM", head_dim),
            ("PAGE", page),
            ("PAGE_ELEMENTS", kv_type.page_bytes(page, head_dim) / element.bytes()),
            ("SCALE_GROUP", kv_type.group(head_dim).unwrap_or(head_dim)),
            ("SINK", probed.sink),
            ("CHUNK", probed.chunk),
            ("CHUNK_PROBES", probed.of_chunk()),
            ("THREADS", THREADS),
        ];
        let constants = constants.map(|(name, value)| format!("constexpr int {name} = {value};\n")).concat();
        let held = match kv_type {
            KvType::F32 => PLAIN,
            KvType::Int4 => SCALED,
            other => panic!("rows of {other:?} are not verified"),
        };
        let (quad, rest) = VERIFY.split_once("\n\n").expect("what a row is made of comes first");
        let text = format!(
            "#line 1 \"prelude.cu\"\n{PRELUDE}\n#line 1 \"coherence, verify\"\nusing Cached = {};\n{constants}\n{quad}\n{held}\n{rest}",
            element.word()
        );
        let input = |name, element| Argument { name, kind: ArgumentKind::Input(element) };
        let mut arguments = vec![input("page_table", Element::U32)];
        arguments.extend(["keys", "values", "probes"].map(|name| input(name, element)));
        let numbers = ["request", "layer", "region", "first", "last"];
        arguments.extend(numbers.map(|name| Argument { name, kind: ArgumentKind::I32 }));
        arguments.push(Argument { name: "found", kind: ArgumentKind::Output(Element::U32) });
        let name = "ihip_coherence_verify".to_owned();
        let kernel =
            Kernel { name, family: Family::Measure, text, arguments, threads: THREADS as u32, shared_bytes: 0 };
        Self { kernel, kv_heads: geometry.kv_heads as usize, probed }
    }

    /// The grid for `rows`, and what the kernel is handed in front of [`FOUND`] words, where keys and values are read from two
    /// buffers.
    pub fn launch(&self, rows: &Rows, [keys, values]: [Buffer; 2]) -> ([u32; 3], Vec<Value>) {
        let Rows { request, layer, ref regions, ref tokens } = *rows;
        // Every chunk that has begun, whichever of its probes are written.
        let chunks = tokens.end.saturating_sub(self.probed.sink).div_ceil(self.probed.chunk);
        let items = tokens.len().max(chunks * self.probed.of_chunk()) * self.kv_heads;
        let buffers = [Buffer::PageTable, keys, values, Buffer::Probes].map(Value::Buffer);
        let numbers = [request as usize, layer, regions.start, tokens.start, tokens.end];
        let numbers = numbers.map(|number| Value::I32(i32::try_from(number).expect("small numbers")));
        ([items.div_ceil(THREADS) as u32, regions.len() as u32, 1], buffers.into_iter().chain(numbers).collect())
    }
}

const PLAIN: &str = "
inline Quad held(const Cached* page, int element) { return *reinterpret_cast<const Quad*>(page + element); }
";

const SCALED: &str = "
// Numbers of four bits, the first in the lowest, and behind those of the page's rows the scales of groups of them.
inline Quad held(const Cached* page, int element) {
    const float scale = to_float(reinterpret_cast<const bf16*>(page + PAGE * HEAD_DIM / 2)[element / SCALE_GROUP]);
    Quad quad;
    for (int i = 0; i < 4; ++i) {
        const int number = page[(element + i) / 2] >> 4 * (i % 2) & 15;
        quad.at[i] = static_cast<float>(number < 8 ? number : number - 16) * scale;
    }
    return quad;
}
";
