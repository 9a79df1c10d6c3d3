//! The keys and values of a prompt's beginning side by side, as dense attention reads them: of a cache whose keys are not
//! rotated.

use super::functions::{CACHE_ROW, QUADS, ROTATE, Shape};
use super::launch::{Buffer, Element, Storage};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};

const THREADS: u32 = 256;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gather {
    shape: Shape,
}

impl Gather {
    /// What it leaves for the attention, in the order of its last arguments.
    pub(crate) const RESULTS: [Buffer; 3] = [Buffer::GatheredKeys, Buffer::GatheredValues, Buffer::GatheredPages];

    pub(crate) const fn new(shape: Shape) -> Self {
        Self { shape }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        format!("ihip_{pipeline}_gather_rotated_{}", self.shape.suffix())
    }

    /// Room for the first `tokens` tokens.
    pub(crate) fn storage(&self, tokens: usize) -> [Storage; 3] {
        let (page, cached) = (self.shape.geometry.page as usize, Element::from(self.shape.kv()));
        let pages = tokens.div_ceil(page);
        let elements = pages * page * self.shape.kv_heads() * self.shape.head_dim();
        let counts = [(cached, elements), (cached, elements), (Element::U32, pages)];
        let storage = |number: usize| {
            let (element, count) = counts[number];
            Storage { buffer: Self::RESULTS[number], element, count, zeroed: false }
        };
        [storage(0), storage(1), storage(2)]
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let mut writer = Writer::new(
            "Rotates a step's queries (in place) and every key so far at their true positions, and puts keys and values side\nby side, where dense attention finds them. One block a token.",
            &format!("{pipeline}, gather"),
        );
        self.shape.constants(&mut writer);
        writer.constant("THREADS", THREADS, "threads of a block");
        writer.text(QUADS).text(CACHE_ROW).text(ROTATE);
        writer.text(&format!("KERNEL(THREADS) {name}({ARGUMENTS}) {{"));
        writer.more(BODY);
        let cached = Element::from(self.shape.kv());
        let argument = |name, kind| Argument { name, kind };
        let arguments = vec![
            argument("step", ArgumentKind::Input(Element::I32)),
            argument("qkv", ArgumentKind::Output(self.shape.activation.element())),
            argument("keys", ArgumentKind::Input(cached)),
            argument("values", ArgumentKind::Input(cached)),
            argument("page_table", ArgumentKind::Input(Element::U32)),
            argument("frequencies", ArgumentKind::Input(Element::F64)),
            argument("gathered_keys", ArgumentKind::Output(cached)),
            argument("gathered_values", ArgumentKind::Output(cached)),
            argument("gathered_pages", ArgumentKind::Output(Element::U32)),
        ];
        Kernel {
            name: name.to_owned(),
            family: Family::Gather,
            text: writer.finish(),
            arguments,
            threads: THREADS,
            shared_bytes: 0,
        }
    }
}

const ARGUMENTS: &str = "const int* step, Activation* qkv, const Cached* __restrict__ keys,\n                                  const Cached* __restrict__ values, const unsigned* __restrict__ page_table,\n                                  const double* frequencies, Cached* gathered_keys, Cached* gathered_values,\n                                  unsigned* gathered_pages";

const BODY: &str = r"
    const int start = step[STEP_START], end = start + step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int position = blockIdx.x, thread = threadIdx.x;
    if (position >= end) return;
    SHARED(float2, angles, HALF);
    for (int element = thread; element < HALF; element += THREADS) {
        const double turns = position * frequencies[element] * 0.15915494309189535;
        const float angle = static_cast<float>((turns - floor(turns + 0.5)) * 6.283185307179586);
        angles[element] = make_float2(cosf(angle), sinf(angle));
    }
    sync_block();
    // Pages lie in the order of the text.
    if (thread == 0 && position % PAGE == 0) gathered_pages[position / PAGE] = position / PAGE;
    const unsigned long long gathered = static_cast<unsigned long long>(position / PAGE) * KV_HEADS * PAGE + position % PAGE;
    for (int item = thread; item < KV_HEADS * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Cached* const pair = &keys[static_cast<unsigned long long>(cache_row(page_table, position, head)) * HEAD_DIM + element];
        Cached* const to = &gathered_keys[(gathered + head * PAGE) * HEAD_DIM + element];
        float x = to_float(pair[0]), y = to_float(pair[HALF]);
        rotate(x, y, angles[element]);
        to[0] = from_float<Cached>(x);
        to[HALF] = from_float<Cached>(y);
    }
    for (int item = thread; item < KV_HEADS * HEAD_DIM / 4; item += THREADS) {
        const int head = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
        const unsigned long long cached = cache_row(page_table, position, head);
        store_quad(&gathered_values[(gathered + head * PAGE) * HEAD_DIM + element], load_quad(&values[cached * HEAD_DIM + element]));
    }
    if (position < start) return;
    const unsigned long long projected = static_cast<unsigned long long>(first_row + position - start) * QKV_ROW;
    for (int item = thread; item < QUERY_HEADS * HALF; item += THREADS) {
        Activation* const pair = &qkv[projected + item / HALF * HEAD_DIM + item % HALF];
        float x = to_float(pair[0]), y = to_float(pair[HALF]);
        rotate(x, y, angles[item % HALF]);
        pair[0] = from_float<Activation>(x);
        pair[HALF] = from_float<Activation>(y);
    }
}
";
