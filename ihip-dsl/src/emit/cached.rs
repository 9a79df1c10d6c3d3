//! The key-value cache in kernel text: its element type, where a row lies, and how one is read and written.
//!
//! What the prelude knows needs few words here. Floats of eight bits are converted by integer arithmetic and one product
//! or sum that is exact, the same on every architecture and on the host. Whole numbers lie apart from their scales, which
//! functions of this text put together: what they return is f32, as from any other cache.

use super::Element;
use super::functions::{CACHE_ROW, Shape};
use super::row::VECTORS;
use super::writer::Writer;
use crate::KvType;
use crate::cached::{E4M3, E5M2, FARTHEST, Float8};

/// Defines the element type, where the prelude does not.
pub(super) fn define(writer: &mut Writer, kv_type: KvType) {
    let float = match kv_type {
        KvType::F32 | KvType::F16 | KvType::Bf16 | KvType::Int8 | KvType::Int4 => return,
        KvType::E4m3 => E4M3,
        KvType::E5m2 => E5M2,
    };
    writer.text(&float8(float, Element::from(kv_type).word()));
}

/// Whether a row's numbers have scales, and lie apart from them.
pub(super) const fn scaled(shape: Shape) -> bool {
    shape.kv().most().is_some()
}

/// Defines `cache_row` and, where numbers have scales, [`places`] and `number`. `PAGE` and `HEAD_DIM` are defined.
pub(super) fn rows(writer: &mut Writer, shape: Shape) {
    writer.text(CACHE_ROW);
    places(writer, shape);
    if scaled(shape) {
        writer.text(NUMBER);
    }
}

/// Defines where numbers and their scales lie, where they have any: constants, `cached_numbers` and `cached_scale`.
pub(super) fn places(writer: &mut Writer, shape: Shape) {
    let (kv_type, head_dim) = (shape.kv(), shape.head_dim());
    let Some(group) = kv_type.group(head_dim) else { return };
    writer.text(SCALED_ROWS);
    writer
        .constant("BITS", kv_type.bits(), "bits of a number")
        .constant("ROW_BYTES", kv_type.number_bytes(head_dim), "bytes of the numbers of a row")
        .constant("SCALE_GROUP", group, "neighbours that share a scale")
        .constant("SCALES", kv_type.scales(head_dim), "scales of a row, each a bf16")
        .constant(
            "PAGE_BYTES",
            kv_type.page_bytes(shape.geometry.page as usize, head_dim),
            "bytes of a page of one head: its numbers, then its scales",
        );
    writer.text(PLACES);
}

/// Defines `load_cached`, and `load_numbers` beside it, where numbers have scales. `Quad` is defined.
pub(super) fn quads(writer: &mut Writer, shape: Shape) {
    if scaled(shape) {
        writer.text(&QUADS.replace("$FOUR", four(shape)));
    }
}

/// The word that four numbers fill.
fn four(shape: Shape) -> &'static str {
    if shape.kv().bits() == 8 { "unsigned" } else { "unsigned short" }
}

/// Defines `store_cached` where numbers have scales.
pub(super) fn store(writer: &mut Writer, shape: Shape) {
    let Some(most) = shape.kv().most() else { return };
    writer.float("MOST", most as f32, "the largest number").float(
        "FARTHEST",
        FARTHEST,
        "2^100: what lies beyond counts as this",
    );
    writer.text(&STORE.replace("$FOUR", four(shape)));
}

/// The text of four neighbouring elements of a row as f32.
pub(super) fn quad(shape: Shape, from: &str, row: &str, element: &str) -> String {
    if scaled(shape) {
        format!("load_cached({from}, {row}, {element})")
    } else {
        format!("load_quad(&{from}[{row} * HEAD_DIM + {element}])")
    }
}

/// Defines `Vector`, what a lane loads of a key, and [`rows`].
pub(super) fn vectors(writer: &mut Writer, shape: Shape) {
    if scaled(shape) {
        rows(writer, shape);
        writer.text(SCALED_VECTORS);
    } else {
        writer.text(VECTORS);
        rows(writer, shape);
    }
}

/// Defines `Vector`, what a lane loads of a chunk's bounds: those are f32 where keys have scales.
pub(super) fn bound_vectors(writer: &mut Writer, shape: Shape) {
    writer.text(if scaled(shape) { BOUND_VECTORS } else { VECTORS });
}

/// The text of a lane's [`vectors`] of a row of `from`, from element `$PART` on.
pub(super) fn vector(shape: Shape, from: &str, row: &str) -> String {
    if scaled(shape) {
        format!("load_vector({from}, {row}, $PART)")
    } else {
        format!("*reinterpret_cast<const Vector*>(&{from}[{row} * HEAD_DIM + $PART])")
    }
}

/// The element type of a chunk's bounds.
pub(super) fn bound(shape: Shape) -> Element {
    if scaled(shape) { Element::F32 } else { Element::from(shape.kv()) }
}

/// Its name in kernel text.
pub(super) fn bound_word(shape: Shape) -> &'static str {
    if scaled(shape) { "float" } else { "Cached" }
}

fn float8(float: Float8, word: &str) -> String {
    let Float8 { mantissa, bias, largest } = float;
    FLOAT8
        .replace("$WORD", word)
        .replace("$EXPONENT", &(7 - mantissa).to_string())
        .replace("$MANTISSA", &mantissa.to_string())
        .replace("$LARGEST", &format!("{largest:?}f"))
        .replace("$RATIO_BITS", &(127 - bias).to_string())
        .replace("$RATIO", &format!("{:?}f", float.ratio()))
        .replace("$LEAST", &format!("{:?}f", float.least_normal()))
        .replace("$OF_STEPS", &format!("{:?}f", float.of_steps()))
        .replace("$STEP_BITS", &(bias + mantissa - 1).to_string())
        .replace("$LOST", &float.lost().to_string())
        .replace("$HALF", &format!("{:#x}u", (1_u32 << (float.lost() - 1)) - 1))
        .replace("$FIELDS", &format!("{}u << {mantissa}", 127 - bias))
}

const FLOAT8: &str = r"
// Eight bits: a sign, $EXPONENT of exponent, $MANTISSA of mantissa. NaN is 0x7f, and infinity is never written.
struct $WORD { unsigned char bits; };

// Exact: every $WORD is a float. With the same exponent field a float is smaller by a factor of 2^$RATIO_BITS.
inline float to_float($WORD value) {
    const unsigned size = value.bits & 0x7fu, sign = value.bits & 0x80u;
    const float number = bits_float(size << $LOST | sign << 24) * $RATIO;
    return size == 0x7fu ? bits_float(0x7fffffffu) : number;
}

// Rounds to nearest, ties to even. What is larger than $LARGEST becomes that, infinity too; every NaN becomes 0x7f.
template <>
inline $WORD from_float<$WORD>(float value) {
    if (value != value) return {0x7f};
    const unsigned bits = float_bits(value), sign = bits >> 24 & 0x80u;
    const float size = min(bits_float(bits & 0x7fffffffu), $LARGEST);
    unsigned code = float_bits(size);
    if (size < $LEAST) {
        code = float_bits(size + $OF_STEPS) & 0xfu;  // the last bits of the sum are steps of 2^-$STEP_BITS
    } else {
        code = (code + $HALF + (code >> $LOST & 1u) >> $LOST) - ($FIELDS);
    }
    return {static_cast<unsigned char>(sign | code)};
}
";

const SCALED_ROWS: &str = r"
// Keys and values are whole numbers times a scale that neighbours share; there is no zero point. A page of a head is PAGE
// rows of numbers, and behind them their scales.
";

const PLACES: &str = r"
inline const Cached* cached_numbers(const Cached* from, unsigned long long row) {
    return from + row / PAGE * PAGE_BYTES + row % PAGE * ROW_BYTES;
}

inline const bf16* cached_scale(const Cached* from, unsigned long long row, int element) {
    return reinterpret_cast<const bf16*>(from + row / PAGE * PAGE_BYTES + PAGE * ROW_BYTES) + row % PAGE * SCALES + element / SCALE_GROUP;
}
";

const NUMBER: &str = r"
// Number i of a word, the first in its lowest bits.
inline float number(unsigned word, int i) {
    return static_cast<float>(static_cast<int>(word << (32 - BITS - BITS * i)) >> (32 - BITS));
}
";

const QUADS: &str = r"
// Four neighbouring numbers times their scale.
inline Quad<float> load_numbers(const Cached* numbers, float scale) {
    const unsigned word = *reinterpret_cast<const $FOUR*>(numbers);
    return {{number(word, 0) * scale, number(word, 1) * scale, number(word, 2) * scale, number(word, 3) * scale}};
}

inline Quad<float> load_cached(const Cached* from, unsigned long long row, int element) {
    return load_numbers(cached_numbers(from, row) + element * BITS / 8, to_float(*cached_scale(from, row, element)));
}
";

const STORE: &str = r"
// Writes four neighbours of a row. SCALE_GROUP / 4 neighbouring lanes write a group: they find its largest number together, so
// that all lanes of a warp come here, valid or not. The scale is rounded first, and numbers to nearest of it, ties to
// even; NaN becomes 0.
inline void store_cached(Cached* to, unsigned long long row, int element, const Quad<float>& quad, bool valid) {
    float exact[4], largest = 0.0f;
    for (int e = 0; e < 4; ++e) {
        exact[e] = quad.at[e] == quad.at[e] ? max(-FARTHEST, min(quad.at[e], FARTHEST)) : 0.0f;
        largest = max(largest, fabsf(exact[e]));
    }
    for (int mask = SCALE_GROUP / 8; mask > 0; mask /= 2) largest = max(largest, shuffle_xor(largest, mask));
    const bf16 scale = from_float<bf16>(largest / MOST);
    const float step = to_float(scale);
    if (!valid) return;
    unsigned word = 0;
    for (int e = 0; e < 4; ++e) {
        const float steps = step > 0.0f ? max(-MOST, min(exact[e] / step, MOST)) : 0.0f;
        word |= (static_cast<unsigned>(static_cast<int>(rintf(steps))) & ((1u << BITS) - 1)) << (BITS * e);
    }
    Cached* const numbers = const_cast<Cached*>(cached_numbers(to, row)) + element * BITS / 8;
    *reinterpret_cast<$FOUR*>(numbers) = static_cast<$FOUR>(word);
    if (element % SCALE_GROUP == 0) *const_cast<bf16*>(cached_scale(to, row, element)) = scale;
}
";

const BOUND_VECTORS: &str = r"
// A lane's part of a chunk's bounds.
struct alignas(16) Vector {
    float at[VECTOR];
};
";

const SCALED_VECTORS: &str = r"
// A lane's part of a key: its numbers are one load, and have one scale.
struct Vector {
    float at[VECTOR];
};

struct alignas(VECTOR * BITS / 8) Numbers {
    unsigned words[VECTOR * BITS / 32];
};

inline Vector load_vector(const Cached* from, unsigned long long row, int element) {
    const Numbers numbers = *reinterpret_cast<const Numbers*>(cached_numbers(from, row) + element * BITS / 8);
    const float scale = to_float(*cached_scale(from, row, element));
    Vector vector;
    for (int e = 0; e < VECTOR; ++e) vector.at[e] = number(numbers.words[e * BITS / 32], e % (32 / BITS)) * scale;
    return vector;
}
";
