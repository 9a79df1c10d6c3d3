//! Puts a step's keys and values into the cache.

use super::cached;
use super::functions::{QUADS, ROTATE, Shape};
use super::launch::Element;
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};

const THREADS: u32 = 256;

/// Constants of the kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Append {
    shape: Shape,
    /// Whether keys are rotated at their true positions before they are stored, and queries in place.
    pub(crate) rotated: bool,
}

impl Append {
    pub(crate) const fn new(shape: Shape, rotated: bool) -> Self {
        Self { shape, rotated }
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        let rotated = if self.rotated { "_rotated" } else { "" };
        format!("ihip_{pipeline}_append{rotated}_{}", self.shape.suffix())
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = if self.rotated {
            "Rotates a step's queries (in place) and keys at their true positions; keys and values go to the cache.\nOne block a row."
        } else {
            "Copies a step's keys and values to the cache, not rotated. One block a row."
        };
        let mut writer = Writer::new(heading, &format!("{pipeline}, append"));
        let scaled = cached::scaled(self.shape);
        let projected = |head: &str| format!("qkv[projected + ({head}) * HEAD_DIM + element]");
        self.shape.constants(&mut writer);
        writer.constant("THREADS", THREADS, "threads of a block");
        writer.text(QUADS);
        cached::rows(&mut writer, self.shape);
        cached::store(&mut writer, self.shape);
        if self.rotated {
            writer.text(ROTATE);
            writer.text(&format!("KERNEL(THREADS) {name}({ROTATED_ARGUMENTS}) {{"));
            writer.more(ROW).more(&self.rotated_keys());
        } else {
            writer.text(&format!("KERNEL(THREADS) {name}({PLAIN_ARGUMENTS}) {{"));
            writer.more(ROW).more(&if scaled {
                scaled_rows("keys", &projected("QUERY_HEADS + head"))
            } else {
                PLAIN_KEYS.to_owned()
            });
        }
        writer.more(&if scaled {
            scaled_rows("values", &projected("QUERY_HEADS + KV_HEADS + head")) + "}"
        } else {
            VALUES.to_owned()
        });
        let cached = Element::from(self.shape.kv());
        let activation = self.shape.activation.element();
        let qkv = if self.rotated { ArgumentKind::Output(activation) } else { ArgumentKind::Input(activation) };
        let mut arguments = vec![
            Argument { name: "step", kind: ArgumentKind::Input(Element::I32) },
            Argument { name: "qkv", kind: qkv },
            Argument { name: "keys", kind: ArgumentKind::Output(cached) },
            Argument { name: "values", kind: ArgumentKind::Output(cached) },
            Argument { name: "page_table", kind: ArgumentKind::Input(Element::U32) },
        ];
        if self.rotated {
            arguments.push(Argument { name: "frequencies", kind: ArgumentKind::Input(Element::F64) });
        }
        Kernel {
            name: name.to_owned(),
            family: Family::Append,
            text: writer.finish(),
            arguments,
            threads: THREADS,
            shared_bytes: 0,
        }
    }

    /// Rotates queries in place and keys into the cache; where those have scales, in shared memory first.
    fn rotated_keys(&self) -> String {
        let text = ROTATED_KEYS;
        if cached::scaled(self.shape) {
            text.replace("$TURNED", "    SHARED(float, turned, KV_HEADS * HEAD_DIM);\n")
                .replace("$STORE\n", TURN_SHARED.trim_start_matches('\n'))
                + "    sync_block();\n"
                + &scaled_rows("keys", "turned[head * HEAD_DIM + element]")
        } else {
            text.replace("$TURNED", "").replace("$STORE\n", STORE_PAIR.trim_start_matches('\n'))
        }
    }
}

/// Writes a row of every key-value head to `to`, from where `from` stands.
fn scaled_rows(to: &str, from: &str) -> String {
    SCALED.replace("$TO", to).replace("$FROM", from)
}

const PLAIN_ARGUMENTS: &str =
    "const int* step, const Activation* qkv, Cached* keys, Cached* values, const unsigned* page_table";

const ROTATED_ARGUMENTS: &str = "const int* step, Activation* qkv, Cached* keys, Cached* values,\n                                    const unsigned* page_table, const double* frequencies";

const ROW: &str = r"
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int row = blockIdx.x, thread = threadIdx.x;
    if (row >= rows) return;
    const int position = start + row;
    const unsigned long long projected = static_cast<unsigned long long>(first_row + row) * QKV_ROW;
";

const PLAIN_KEYS: &str = r"
    for (int item = thread; item < KV_HEADS * HEAD_DIM / 4; item += THREADS) {
        const int head = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
        const Quad<float> quad = load_quad(&qkv[projected + (QUERY_HEADS + head) * HEAD_DIM + element]);
        const unsigned long long cached = cache_row(page_table, position, head);
        store_quad(&keys[cached * HEAD_DIM + element], quad);
    }
";

const ROTATED_KEYS: &str = r"
    // All heads turn by the same angles. A position times a frequency reaches millions of radians: it is reduced to
    // one turn in f64, and only the rest is rounded.
    SHARED(float2, angles, HALF);
$TURNED    for (int element = thread; element < HALF; element += THREADS) {
        const double turns = position * frequencies[element] * 0.15915494309189535;
        const float angle = static_cast<float>((turns - floor(turns + 0.5)) * 6.283185307179586);
        angles[element] = make_float2(cosf(angle), sinf(angle));
    }
    sync_block();
    for (int item = thread; item < (QUERY_HEADS + KV_HEADS) * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        Activation* const pair = &qkv[projected + head * HEAD_DIM + element];
        float x = to_float(pair[0]), y = to_float(pair[HALF]);
        rotate(x, y, angles[element]);
        if (head < QUERY_HEADS) {
            pair[0] = from_float<Activation>(x);
            pair[HALF] = from_float<Activation>(y);
        } else {
$STORE
        }
    }
";

const STORE_PAIR: &str = r"
            const unsigned long long cached = cache_row(page_table, position, head - QUERY_HEADS);
            keys[cached * HEAD_DIM + element] = from_float<Cached>(x);
            keys[cached * HEAD_DIM + element + HALF] = from_float<Cached>(y);
";

const TURN_SHARED: &str = r"
            turned[(head - QUERY_HEADS) * HEAD_DIM + element] = x;
            turned[(head - QUERY_HEADS) * HEAD_DIM + element + HALF] = y;
";

const SCALED: &str = r"
    for (int first = 0; first < KV_HEADS * HEAD_DIM / 4; first += THREADS) {
        const int item = min(first + thread, KV_HEADS * HEAD_DIM / 4 - 1);
        const int head = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
        const Quad<float> quad = load_quad(&$FROM);
        store_cached($TO, cache_row(page_table, position, head), element, quad, item == first + thread);
    }
";

const VALUES: &str = r"
    for (int item = thread; item < KV_HEADS * HEAD_DIM / 4; item += THREADS) {
        const int head = item / (HEAD_DIM / 4), element = item % (HEAD_DIM / 4) * 4;
        const Quad<float> quad = load_quad(&qkv[projected + (QUERY_HEADS + KV_HEADS + head) * HEAD_DIM + element]);
        const unsigned long long cached = cache_row(page_table, position, head);
        store_quad(&values[cached * HEAD_DIM + element], quad);
    }
}
";
