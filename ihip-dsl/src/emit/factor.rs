//! What tensor cores multiply: keys and values as they lie in the cache where that is f16 or bf16, and otherwise bf16
//! that is made of them as they are read.
//!
//! Every float of eight bits is a bf16, and so is every whole number of eight bits or four. A number times its scale is
//! none: products are summed up for each scale, and the sums are multiplied. That takes two shuffles a scale and product,
//! where a scaled number would have to be split like a query and take every product twice.

use super::Element;
use super::cached;
use super::functions::Shape;
use super::writer::Writer;
use crate::KvType;
use crate::cached::{E4M3, E5M2, Float8};

/// Whether what is read from the cache becomes another type before it is multiplied.
pub(super) const fn converts(shape: Shape) -> bool {
    !shape.kv().is_factor()
}

/// Whether tensor cores take what the cache holds, and four lanes have room for the scales of a key.
pub(super) const fn fits(shape: Shape) -> bool {
    shape.kv().factor().is_some() && shape.kv().scales(shape.head_dim()) <= 4
}

/// Elements of a key that a lane loads at a time, where four lanes load a key: 16 bytes of them at most, no more than make
/// the four lanes' one scale, and few enough that a lane has both elements of pairs that turn together.
pub(super) const fn each(shape: Shape) -> usize {
    match (converts(shape), shape.head_dim().is_multiple_of(128)) {
        (false, _) | (true, false) => 8,
        (true, true) => 16,
    }
}

/// Defines `Factor` and, where caches are of another type, `factors`, which makes them of numbers, and where those lie:
/// `cached_numbers`. `PAGE` and `HEAD_DIM` are defined.
pub(super) fn define(writer: &mut Writer, shape: Shape) {
    let kv_type = shape.kv();
    alias(writer, shape);
    if !converts(shape) {
        return;
    }
    if cached::scaled(shape) {
        cached::places(writer, shape);
    } else {
        writer.constant("BITS", kv_type.bits(), "bits of a number").constant(
            "ROW_BYTES",
            kv_type.number_bytes(shape.head_dim()),
            "bytes of a row",
        );
        writer.text(PLACES);
    }
    let pairs = match kv_type {
        KvType::E4m3 => float8(E4M3),
        KvType::E5m2 => float8(E5M2),
        KvType::Int4 => INT4.to_owned(),
        _ => INT8.to_owned(),
    };
    writer.text(&pairs);
}

/// Defines what a lane loads of a key at a time, where four lanes load one: `EACH`, `LOADS` and, where it is converted,
/// `Numbers`.
pub(super) fn loads(writer: &mut Writer, shape: Shape) {
    let bytes = each(shape) * shape.kv().bits() / 8;
    writer
        .constant(
            "EACH",
            each(shape),
            format!("elements of a load of a lane, {bytes} bytes, where four lanes load a key"),
        )
        .constant("LOADS", shape.head_dim() / (4 * each(shape)), "such loads of a key");
    if converts(shape) {
        writer.text(NUMBERS);
    }
}

/// Defines `Factor` alone.
pub(super) fn alias(writer: &mut Writer, shape: Shape) {
    let word = shape.kv().factor().map_or("float", |factor| Element::from(factor).word());
    writer.text(&if converts(shape) {
        format!("using Factor = {word};  // what tensor cores multiply: it holds every number of the cache")
    } else {
        "using Factor = Cached;  // what tensor cores multiply".to_owned()
    });
}

/// Defines `Probe`, a lane's part of a key, and `load_probe`.
pub(super) fn probes(writer: &mut Writer, shape: Shape) {
    loads(writer, shape);
    let (scale, load) = if cached::scaled(shape) { (PROBE_SCALE, LOAD_PROBE_SCALE) } else { ("", "") };
    let text = if converts(shape) { CONVERTED_PROBE } else { PROBE };
    if !converts(shape) {
        writer.text(PAIRS);
    }
    writer.text(&text.replace("$SCALE\n", scale).replace("$LOAD_SCALE\n", load));
}

/// Defines `Pairs` and `Numbers`: sixteen bytes of factors, and of what they are made of.
pub(super) fn pieces(writer: &mut Writer) {
    writer.text(PAIRS).text(NUMBERS_OF_PIECE);
}

/// Defines `load_eight`, which makes eight neighbouring elements of a row in shared memory pairs of factors, and
/// `element_of`, which makes one of those an f32.
pub(super) fn eights(writer: &mut Writer) {
    writer.text(EIGHTS);
}

fn float8(float: Float8) -> String {
    let Float8 { mantissa, bias, .. } = float;
    let both = |half: u32| format!("{:#010x}u", half << 16 | half);
    FLOAT8
        .replace("$SHIFT", &(1 + mantissa).to_string())
        .replace("$SIZE", &both(0x7f << (7 - mantissa)))
        .replace("$LAST", &both(1 << (7 - mantissa)))
        .replace("$CARRY", &both(1 << (14 - mantissa)))
        .replace("$ONES", &((1 << (mantissa + 1)) - 1).to_string())
        .replace("$RATIO_BITS", &(127 - bias).to_string())
        .replace("$RATIO", &both((254 - bias) << 7))
}

const PLACES: &str = r"
inline const Cached* cached_numbers(const Cached* from, unsigned long long row) { return from + row * ROW_BYTES; }
";

const FLOAT8: &str = r"
// Pair i of a word's four numbers. With the same exponent field a bf16 is smaller by a factor of 2^$RATIO_BITS.
inline unsigned factors(unsigned word, int i) {
    const unsigned high = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);  // in the upper byte of each half
    const unsigned numbers = (high & 0x80008000u) | (high >> $SHIFT & $SIZE);
    // NaN is where one more carries: all bits of its exponent are set.
    const unsigned nan = numbers + $LAST & $CARRY;
    return multiply_add(numbers + nan * $ONES, $RATIO, 0x80008000u);
}
";

const INT8: &str = r"
// Pair i of a word's four numbers. From 128 to 255 a bf16's steps are 1: seven bits are added to 128, and the sign makes 256 of
// what is taken off again.
inline unsigned factors(unsigned word, int i) {
    const unsigned bytes = __byte_perm(word, 0x43434343u, i == 0 ? 0x4140 : 0x4342);
    return multiply_add(bytes & 0xff80ff80u, 0xbf80bf80u, bytes & 0xff7fff7fu);
}
";

const INT4: &str = r"
// Pair i of a word's eight numbers. From 128 to 255 a bf16's steps are 1: a number and 8 are added to 128, and 136 is taken off.
inline unsigned factors(unsigned word, int i) {
    const unsigned nibbles = __byte_perm(word, word >> 4, 0x0400 + 0x0101 * i) & 0x000f000fu;
    return multiply_add(nibbles ^ 0x43084308u, 0x3f803f80u, 0xc308c308u);
}
";

pub(super) const PAIRS: &str = r"
// Eight neighbouring elements as pairs: sixteen bytes.
struct alignas(16) Pairs {
    unsigned at[4];
};
";

/// A lane's part of a left factor.
pub(super) const FOUR: &str = r"
// A lane's part of a left factor.
struct alignas(16) Four {
    unsigned at[4];
};
";

const PROBE: &str = r"
// A lane's part of a key: pairs of neighbours in the order in which products take them.
struct Probe {
    unsigned at[2 * STEPS];
};

inline Probe load_probe(const Cached* keys, unsigned long long row, int across) {
    const Pairs* const key = reinterpret_cast<const Pairs*>(&keys[row * HEAD_DIM]);
    Probe probe;
    for (int load = 0; load < LOADS; ++load) {
        const Pairs pairs = key[load * 4 + across];
        for (int pair = 0; pair < 4; ++pair) probe.at[load * 4 + pair] = pairs.at[pair];
    }
    return probe;
}
";

const NUMBERS: &str = r"
// Neighbouring numbers: one load.
struct alignas(EACH * BITS / 8) Numbers {
    unsigned words[EACH * BITS / 32];
};
";

const CONVERTED_PROBE: &str = r"
// A lane's part of a key: pairs of neighbours in the order in which products take them.
struct Probe {
    unsigned at[2 * STEPS];
$SCALE
};

inline Probe load_probe(const Cached* keys, unsigned long long row, int across) {
    const Numbers* const key = reinterpret_cast<const Numbers*>(cached_numbers(keys, row));
    Probe probe;
    for (int load = 0; load < LOADS; ++load) {
        const Numbers numbers = key[load * 4 + across];
        for (int pair = 0; pair < EACH / 2; ++pair)
            probe.at[load * (EACH / 2) + pair] = factors(numbers.words[pair * BITS / 16], pair % (16 / BITS));
    }
$LOAD_SCALE
    return probe;
}
";

const PROBE_SCALE: &str = "    float scale;  // of the lane's own number: four lanes have those of a key\n";

const LOAD_PROBE_SCALE: &str =
    "    probe.scale = to_float(*cached_scale(keys, row, min(across, SCALES - 1) * SCALE_GROUP));\n";

const NUMBERS_OF_PIECE: &str = r"
// Sixteen bytes of numbers.
struct alignas(16) Numbers {
    unsigned words[4];
};
";

const EIGHTS: &str = r"
// Eight neighbouring numbers.
struct alignas(BITS) Eight {
    unsigned words[BITS / 4];
};

inline Pairs load_eight(const Cached* numbers) {
    const Eight eight = *reinterpret_cast<const Eight*>(numbers);
    Pairs pairs;
    for (int pair = 0; pair < 4; ++pair) pairs.at[pair] = factors(eight.words[pair * BITS / 16], pair % (16 / BITS));
    return pairs;
}

inline float element_of(const Pairs& pairs, int e) {
    const unsigned pair = pairs.at[e / 2];
    return bits_float(e % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}
";
