//! Keys that are turned to their positions in registers, on their way into a product on tensor cores.
//!
//! Elements that turn together lie in the same lane: half of its loads are the first elements of pairs, half the second
//! ones. What turning gives is split like the queries, into what the factors' type holds and the rest.

use super::cached;
use super::functions::Shape;
use super::writer::Writer;

/// Whether lanes hold both elements of a pair.
pub(super) const fn fits(shape: Shape) -> bool {
    shape.head_dim().is_multiple_of(64)
}

/// `Angles`, which `turn_pairs` and whoever turns on its own load.
pub(super) const ANGLES: &str = r"
// The angles of two neighbouring elements: one load.
struct alignas(16) Angles {
    float2 at[2];
};
";

/// Defines `Angles` and `turn_pairs`; `rotate` and `split_pair` are defined.
pub(super) fn define(writer: &mut Writer, shape: Shape) {
    let (parameters, low, high) = if cached::scaled(shape) {
        (", float low_scale, float high_scale", " * low_scale", " * high_scale")
    } else {
        ("", "", "")
    };
    if cached::scaled(shape) {
        writer.text(SCALE_OF);
    }
    let turn = TURN_PAIRS.replace("$SCALES", parameters).replace("$LOW", low).replace("$HIGH", high);
    writer.text(ANGLES).text(&turn);
}

/// Defines `first_element`, for probes: `EACH` is defined.
pub(super) fn places(writer: &mut Writer) {
    writer.text(FIRST_ELEMENT);
}

const FIRST_ELEMENT: &str = r"
// The first element of pair i of a lane's part of a key.
inline int first_element(int i, int across) { return (i / (EACH / 2) * 4 + across) * EACH + i % (EACH / 2) * 2; }
";

const SCALE_OF: &str = r"
// Which scale of a key is that of pair i of a lane's part.
inline int scale_of(int i) { return i / (EACH / 2) * 4 * EACH / SCALE_GROUP; }
";

const TURN_PAIRS: &str = r"
// Turns two neighbouring elements of a key, and those HALF further, by their angles. What the factors' type holds of them
// stays in place; the rest comes beside it.
inline void turn_pairs(unsigned& low, unsigned& high, unsigned& low_rest, unsigned& high_rest, const Angles& angles$SCALES) {
    float x[2], y[2];
    for (int e = 0; e < 2; ++e) {
        x[e] = to_float(Factor{static_cast<unsigned short>(low >> 16 * e)})$LOW;
        y[e] = to_float(Factor{static_cast<unsigned short>(high >> 16 * e)})$HIGH;
        rotate(x[e], y[e], angles.at[e]);
    }
    split_pair(x[0], x[1], low, low_rest);
    split_pair(y[0], y[1], high, high_rest);
}
";
