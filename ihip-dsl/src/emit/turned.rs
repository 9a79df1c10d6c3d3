//! Keys that are turned to their positions in registers, on their way into a product on tensor cores.
//!
//! Elements that turn together lie in the same lane: half of its loads are the first elements of pairs, half the second
//! ones. What turning gives is split like the queries, into what the cache's type holds and the rest.

use super::functions::Shape;

/// Whether lanes hold both elements of a pair.
pub(super) const fn fits(shape: Shape) -> bool {
    shape.head_dim().is_multiple_of(64)
}

/// `Angles`, which [`TURN_PAIRS`] and whoever turns on its own load.
pub(super) const ANGLES: &str = r"
// The angles of two neighbouring elements: one load.
struct alignas(16) Angles {
    float2 at[2];
};
";

/// `turn_pairs`; `Angles`, `rotate` and `split_pair` are defined.
pub(super) const TURN_PAIRS: &str = r"
// Turns two neighbouring elements of a key, and those HALF further, by their angles. What the cache's type holds of them
// stays in place; the rest comes beside it.
inline void turn_pairs(unsigned& low, unsigned& high, unsigned& low_rest, unsigned& high_rest, const Angles& angles) {
    float x[2], y[2];
    for (int e = 0; e < 2; ++e) {
        x[e] = to_float(Cached{static_cast<unsigned short>(low >> 16 * e)});
        y[e] = to_float(Cached{static_cast<unsigned short>(high >> 16 * e)});
        rotate(x[e], y[e], angles.at[e]);
    }
    split_pair(x[0], x[1], low, low_rest);
    split_pair(y[0], y[1], high, high_rest);
}
";
