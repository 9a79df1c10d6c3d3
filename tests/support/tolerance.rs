//! How far a kernel may be off: functions of the cache's type and of how many terms are summed, nothing else. Tests that
//! draw data of one size only, and so work out no bound for each case, have theirs at the end.
//!
//! Every other tolerance is a share of a size: of a product, the sum of the sizes of its terms; of an average, the average of
//! the sizes of the values. So what is allowed grows with the data, and data that cannot be rounded allows nothing.

use ihip_dsl::emit::Activation;
use ihip_dsl::{KvType, Scores};

/// Half a unit in the last place of an f32 near 1.
const F32: f64 = 1.0 / (1 << 24) as f64;

/// Roundings of a product besides those of its sum: conversions, the scale, and angles, of which some are found by
/// turning others.
const ONCE: usize = 24;

/// The share that is lost of a number that tensor cores take as two of the type in which they multiply the cache's: what
/// the first rounds away, the second rounds again. Types that they do not take lose nothing.
#[must_use]
pub const fn split(kv_type: KvType) -> f64 {
    match kv_type.factor() {
        None => 0.0,
        Some(KvType::F16) => 1.0 / (1 << 22) as f64,
        Some(_) => 1.0 / (1 << 17) as f64,
    }
}

/// The share that is lost of a number that they take as one of that type.
#[must_use]
pub const fn rounded(kv_type: KvType) -> f64 {
    match kv_type.factor() {
        None => 0.0,
        Some(factor) => held(factor),
    }
}

/// What is lost of it at most, whatever its size: an f16 knows no smaller steps.
#[must_use]
pub const fn least(kv_type: KvType) -> f64 {
    match kv_type.factor() {
        None => 0.0,
        Some(factor) => least_held(factor),
    }
}

/// The share that is lost of a number that is cached: of its own size, or of the largest of its group where those share
/// a scale, which loses one part in 256 itself.
const fn held(kv_type: KvType) -> f64 {
    match kv_type {
        KvType::F32 => 0.0,
        KvType::F16 => 1.0 / (1 << 11) as f64,
        KvType::Bf16 => 1.0 / (1 << 8) as f64,
        KvType::E4m3 => 1.0 / (1 << 4) as f64,
        KvType::E5m2 => 1.0 / (1 << 3) as f64,
        KvType::Int8 => 0.502 / 127.0,
        KvType::Int4 => 0.502 / 7.0,
    }
}

/// What is lost of it at most, whatever its size: half of the smallest step.
#[must_use]
pub const fn least_held(kv_type: KvType) -> f64 {
    match kv_type {
        KvType::F32 | KvType::Bf16 | KvType::Int8 | KvType::Int4 => 0.0,
        KvType::F16 => 1.0 / (1 << 24) as f64,
        KvType::E4m3 => 1.0 / (1 << 10) as f64,
        KvType::E5m2 => 1.0 / (1 << 17) as f64,
    }
}

/// A score: a product of query and key whose elements are sums of `terms` terms in all.
#[must_use]
pub const fn score(kv_type: KvType, terms: usize) -> f64 {
    F32 * (terms + ONCE) as f64 + split(kv_type)
}

/// The same where the key is turned, or is a mean, and so is taken as two numbers as well: the product of what both were
/// rounded by is left out.
#[must_use]
pub const fn score_of_two(kv_type: KvType, terms: usize) -> f64 {
    score(kv_type, terms) + split(kv_type) + rounded(kv_type) * rounded(kv_type)
}

/// The logarithm of a share, beyond what its products are off by: of `chunks` chunks, the largest of whose logarithms
/// has the size `size`.
#[must_use]
pub fn logarithm(chunks: usize, size: f64) -> f64 {
    F32 * ((chunks + ONCE) as f64 + 4.0 * size)
}

/// A logit of the attention over keys that are rotated as they are read, or were when they were cached: then one rounded
/// product has to do in prefill.
#[must_use]
pub const fn logit(kv_type: KvType, head_dim: usize, rotated_cache: bool) -> f64 {
    score(kv_type, head_dim) + if rotated_cache { rounded(kv_type) } else { 2.0 * split(kv_type) }
}

/// An attention's output over `keys` keys, whose logits are off by `logit`: each weight, and the sum of them, by that
/// much and by its own rounding.
#[must_use]
pub fn average(kv_type: KvType, keys: usize, logit: f64, rotated_cache: bool) -> f64 {
    let weight = if rotated_cache { rounded(kv_type) } else { split(kv_type) };
    (2.0 * logit).exp_m1() + weight + F32 * (keys + ONCE) as f64
}

/// An element of such an average, of values whose sizes add up to `values`: weights below 2⁻¹²⁶ of the largest are zero in
/// kernels, and so is what an f32 cannot tell from zero.
#[must_use]
pub fn flushed(values: f64) -> f64 {
    f64::from(f32::MIN_POSITIVE) * (1.0 + values)
}

/// An element of a key that is rotated before it is cached: a share of the size of its pair, or of the largest of its
/// group.
#[must_use]
pub const fn cached(kv_type: KvType) -> f64 {
    held(kv_type) + F32 * 16.0
}

/// A number that leaves a kernel as an activation.
#[must_use]
pub const fn activation(activation: Activation) -> f64 {
    match activation {
        Activation::F32 => 0.0,
        Activation::Bf16 => rounded(KvType::Bf16),
    }
}

/// A sum over a whole layer, of elements that are at most 2 in size and were computed in turn: a score, an output. Where
/// data is drawn no other way, no bound is worked out for each.
pub const SUM: f32 = 1e-4;

/// An element of such data that is computed at once: a rotated key, a mean of a chunk.
pub const ELEMENT: f32 = 1e-5;

/// An output of one kernel over such data: sums of f32, and the rounding of rotated keys where those are cached.
#[must_use]
pub const fn output(kv_type: KvType, rotated_cache: bool) -> f32 {
    match kv_type {
        KvType::F16 | KvType::Bf16 if rotated_cache => 2e-2,
        // A key that is off by an f32's rounding may be held as its neighbour.
        KvType::E4m3 | KvType::E5m2 | KvType::Int8 | KvType::Int4 if rotated_cache => 1e-1,
        _ => 2e-5,
    }
}

/// Scores of such data that are closer than this may come out in another order.
#[must_use]
pub const fn undecided(kv_type: KvType, rotated_cache: bool) -> f32 {
    match kv_type {
        KvType::F32 => 1e-5,
        _ if rotated_cache => 1e-1,
        _ => 1e-5,
    }
}

/// The same where every sum is an f32, and nothing else is rounded.
#[must_use]
pub const fn near_tie(scores: Scores) -> f32 {
    match scores {
        Scores::Raw => 5e-6,
        // Logarithms of a softmax.
        Scores::Soft => 2e-5,
    }
}

/// A product of some hundred terms of size 1. TF32 in place of f32 would be as far off as 1e-2.
#[must_use]
pub const fn product(activation: Activation) -> f64 {
    match activation {
        Activation::F32 => 1e-4,
        Activation::Bf16 => 1e-1,
    }
}

/// The share that a model's own kernels may lose of a number that they store: a rounding of its type.
#[must_use]
pub const fn stored(activation: Activation) -> f32 {
    match activation {
        Activation::F32 => 1e-5,
        Activation::Bf16 => 8e-3,
    }
}

/// A sum of 700 probabilities, each rounded to a multiple of 2⁻³⁰.
pub const PROBABILITY: f64 = 1e-6;
