//! Positions that `dynamic_extend` and `self_extend` bring keys back to, as device functions.

use super::functions::Shape;
use super::writer::Writer;
use crate::rope::{BLEND, EXTENSION_GROUP, Extension};

/// The constants that [`functions`] reads.
pub(super) fn constants(writer: &mut Writer, shape: Shape, extension: Extension) {
    // No sequence reaches positions of more than 31 bits.
    let trained = shape.geometry.trained.min(i32::MAX as u32);
    writer.constant("TRAINED", trained, "positions that the model was trained on").constant(
        "NEAR",
        extension.near(trained as usize),
        "most recent keys, which keep their positions",
    );
    if extension == Extension::SelfExtend {
        writer.constant("SHARERS", EXTENSION_GROUP, "keys further back that share a position");
    }
}

/// `extended_position` and `extension_origin`.
pub(super) fn functions(writer: &mut Writer, extension: Extension) {
    writer.text(match extension {
        Extension::DynamicExtend => DYNAMIC,
        Extension::SelfExtend => SELF,
    });
}

/// `blend`: how the attention's `dynamic_extend` joins two positions.
pub(super) fn blend(writer: &mut Writer) {
    let [packed, extended] = BLEND;
    writer
        .float("PACKED_SHARE", packed, "weight of a key's angle where it is packed")
        .float("EXTENDED_SHARE", extended, "weight of its angle where it is drawn together")
        .text(BLENDED);
}

const DYNAMIC: &str = r"
// Where the queries from first to end - 1 have the key at position token: beyond what the model was trained on, keys
// further back are drawn together linearly until all fit. The product takes more than 32 bits.
inline int extended_position(int token, int first, int end) {
    if (end <= TRAINED) return token;
    int position = token;
    if (token < end - NEAR && first > NEAR) {
        const int far = first - NEAR;
        position = static_cast<int>(static_cast<long long>(token - far) * (TRAINED - NEAR) / far) + far;
    }
    return max(end - TRAINED, position);
}

// The least of these positions. All are counted from there: only differences matter, and the table stays short.
inline int extension_origin(int first, int end) { return max(0, end - TRAINED); }
";

const SELF: &str = r"
// Where the queries from first to end - 1 have the key at position token: beyond what the model was trained on, keys
// further back share positions.
inline int extended_position(int token, int first, int end) {
    if (end <= TRAINED || token >= end - NEAR) return token;
    return first - (first - token) / SHARERS;
}

// The least of these positions. All are counted from there: only differences matter, and the table stays short.
inline int extension_origin(int first, int end) {
    return end <= TRAINED ? 0 : min(first - first / SHARERS, end - NEAR);
}
";

const BLENDED: &str = r"
// The angle between two, weighted by cosine and sine: no rotation any more.
inline float2 blend(float2 packed, float2 extended) {
    return make_float2(PACKED_SHARE * packed.x + EXTENDED_SHARE * extended.x,
                       PACKED_SHARE * packed.y + EXTENDED_SHARE * extended.y);
}
";
