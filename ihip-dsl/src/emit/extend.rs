//! Positions that `dynamic_extend` and `self_extend` bring keys back to, as device functions.

use super::functions::Shape;
use super::writer::Writer;
use crate::ScanRope;
use crate::rope::{BLEND, EXTENSION_GROUP, Extension};

/// How a scan brings keys back, where it does.
pub(super) const fn of_scan(rope: ScanRope) -> Option<Extension> {
    match rope {
        ScanRope::DynamicExtend => Some(Extension::DynamicExtend),
        ScanRope::SelfExtend => Some(Extension::SelfExtend),
        ScanRope::Relative | ScanRope::ChunkIndexed | ScanRope::Infllm | ScanRope::None => None,
    }
}

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

/// Defines the queries of a block in prefill, which begins with query `first` of the call and has `queries_here`, and
/// the `origin` that their positions and those of their keys are counted from.
pub(super) const BLOCK: &str = r"
    // Positions are counted from the least that a key or a query has, however long the sequence is.
    const int first_position = start + first, end_position = first_position + queries_here;
    const int origin = extension_origin(first_position, end_position);
";

/// Where the key at position `token` of such a block stands.
pub(super) fn block_position(token: &str) -> String {
    format!("extended_position({token}, first_position, end_position) - origin")
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
// further back are drawn together linearly until all fit. The product takes more than 32 bits and less than 53: the
// quotient, truncated, is that of integers, whose division would be a call.
inline int extended_position(int token, int first, int end) {
    if (end <= TRAINED) return token;
    int position = token;
    if (token < end - NEAR && first > NEAR) {
        const int far = first - NEAR;
        position = static_cast<int>(static_cast<double>(token - far) * (TRAINED - NEAR) / far) + far;
    }
    return max(end - TRAINED, position);
}

// The least of these positions and of the queries'. All are counted from there: only differences matter, and the table
// stays short.
inline int extension_origin(int first, int end) { return max(0, min(first, end - TRAINED)); }
";

const SELF: &str = r"
// Where the queries from first to end - 1 have the key at position token: beyond what the model was trained on, keys
// further back share positions.
inline int extended_position(int token, int first, int end) {
    if (end <= TRAINED || token >= end - NEAR) return token;
    return first - (first - token) / SHARERS;
}

// The least of these positions and of the queries'. All are counted from there: only differences matter, and the table
// stays short.
inline int extension_origin(int first, int end) {
    return end <= TRAINED ? 0 : min(first - first / SHARERS, end - NEAR);
}
";

/// `turn_back`: what a decoding step makes of a key that a few lanes hold together, each the elements from `$PART` on.
pub(super) const TURN_BACK: &str = r"
// A lane's part of a key as f32.
struct Turned {
    float at[VECTOR];
};

// A lane's part of the key at position token, turned back by its distance to the step's query, which stays as it is: what
// counts is the difference. Elements that turn together lie half of the lanes apart.
inline Turned turn_back(const Vector& key, int token, int position, const float2* rope_table, int lane) {
    const int distance = position - extended_position(token, position, position + 1);
    Turned turned;
    for (int e = 0; e < VECTOR; ++e) {
        const int element = $PART + e;
        const float2 angle = rope_table[distance * HALF + element % HALF];
        const float here = to_float(key.at[e]), there = shuffle_xor(here, LANES / 2);
        turned.at[e] = here * angle.x + (element < HALF ? there : -there) * angle.y;
    }
    return turned;
}
";

const BLENDED: &str = r"
// The angle between two, weighted by cosine and sine: no rotation any more.
inline float2 blend(float2 packed, float2 extended) {
    return make_float2(PACKED_SHARE * packed.x + EXTENDED_SHARE * extended.x,
                       PACKED_SHARE * packed.y + EXTENDED_SHARE * extended.y);
}
";
