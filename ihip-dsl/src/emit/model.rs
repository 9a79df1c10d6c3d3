//! Kernels of a Llama that are not attention: embedding, norm, activation, rounding, and the choice of a token.
//!
//! They depend on no plan and on no size: columns and counts are arguments. What they read and write is f32 except
//! for the inputs of matrix products, which have the element type of the weights.

use super::writer::Writer;
use super::{Activation, Argument, ArgumentKind, Element, Family, Kernel};

/// One of the model's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ModelKernel {
    /// `out[row] = table[tokens[row]]`; grid `[rows, 1, 1]`.
    Embed,
    /// `out[row] = x[row] / √(mean(x[row]²) + epsilon) · weight`; grid `[rows, 1, 1]`.
    RmsNorm,
    /// `out[row][j] = silu(gate_up[row][j]) · gate_up[row][columns + j]`; grid `[rows, ⌈columns / 1024⌉, 1]`.
    Swiglu,
    /// `out[i] = x[i]` in the weights' type; grid `[⌈count / 1024⌉, 1, 1]`.
    Round,
    /// The token with the largest logit, the lower one in a tie; grid `[1, 1, 1]`.
    Argmax,
    /// A token drawn by temperature from the most likely ones; grid `[1, 1, 1]`.
    Sample,
}

/// Elements that a block of [`ModelKernel::Swiglu`] or [`ModelKernel::Round`] computes.
pub const BLOCK_ELEMENTS: usize = 1024;

/// Largest number of tokens that [`ModelKernel::Sample`] can choose from.
pub const MAX_TOKENS: usize = 1 << 24;

impl ModelKernel {
    /// Every kernel that a model with weights of type `weights` needs.
    #[must_use]
    pub fn all(weights: Activation) -> Vec<Self> {
        let mut all = vec![Self::Embed, Self::RmsNorm, Self::Swiglu, Self::Argmax, Self::Sample];
        if weights != Activation::F32 {
            all.push(Self::Round);
        }
        all
    }

    /// Name of the entry point.
    #[must_use]
    pub fn name(self, weights: Activation) -> String {
        let word = match weights {
            Activation::F32 => "f32",
            Activation::Bf16 => "bf16",
        };
        match self {
            Self::Embed => format!("ihip_model_embed_{word}"),
            Self::RmsNorm => format!("ihip_model_rms_norm_{word}"),
            Self::Swiglu => format!("ihip_model_swiglu_{word}"),
            Self::Round => format!("ihip_model_round_{word}"),
            Self::Argmax => "ihip_model_argmax".to_owned(),
            Self::Sample => "ihip_model_sample".to_owned(),
        }
    }

    /// The kernel, for weights of type `weights`.
    #[must_use]
    pub fn emit(self, weights: Activation) -> Kernel {
        let name = self.name(weights);
        let (heading, threads, origin) = match self {
            Self::Embed => ("The embedding of each token of a step. One block a row.", 256, "embed"),
            Self::RmsNorm => ("Root mean square norm. One block a row; the sum has a fixed order.", 256, "rms_norm"),
            Self::Swiglu => ("The gated activation of the feed-forward layer.", 256, "swiglu"),
            Self::Round => ("Rounds the inputs of a matrix product to the weights' type.", 256, "round"),
            Self::Argmax => ("The most likely token. One block.", 1024, "argmax"),
            Self::Sample => (SAMPLE_HEADING, 1024, "sample"),
        };
        let mut writer = Writer::new(heading, &format!("model, {origin}"));
        if !matches!(self, Self::Argmax | Self::Sample) {
            writer.text(&format!(
                "using Input = {};  // element of the weights and of a product's inputs",
                weights.element().word()
            ));
        }
        writer.constant("THREADS", threads, "threads of a block");
        let body = match self {
            Self::Embed => EMBED,
            Self::RmsNorm => RMS_NORM,
            Self::Swiglu => SWIGLU,
            Self::Round => ROUND,
            Self::Argmax => ARGMAX,
            Self::Sample => SAMPLE,
        };
        writer.text(&body.replace("NAME", &name));
        let arguments = self.arguments(weights.element());
        Kernel { name, family: Family::Model, text: writer.finish(), arguments, threads, shared_bytes: 0 }
    }

    fn arguments(self, input: Element) -> Vec<Argument> {
        use ArgumentKind::{F32, I32, Input, Output};
        let (f32, u32) = (Element::F32, Element::U32);
        let arguments: &[(&'static str, ArgumentKind)] = match self {
            Self::Embed => &[("table", Input(input)), ("tokens", Input(u32)), ("out", Output(f32)), ("columns", I32)],
            Self::RmsNorm => {
                &[("x", Input(f32)), ("weight", Input(f32)), ("out", Output(input)), ("columns", I32), ("epsilon", F32)]
            }
            Self::Swiglu => &[("gate_up", Input(f32)), ("out", Output(input)), ("columns", I32)],
            Self::Round => &[("x", Input(f32)), ("out", Output(input)), ("count", I32)],
            Self::Argmax => &[("logits", Input(f32)), ("count", I32), ("token", Output(u32))],
            Self::Sample => &[
                ("logits", Input(f32)),
                ("count", I32),
                ("temperature", F32),
                ("top_p", F32),
                ("draw", F32),
                ("token", Output(u32)),
            ],
        };
        arguments.iter().map(|&(name, kind)| Argument { name, kind }).collect()
    }
}

const EMBED: &str = r"
KERNEL(THREADS) NAME(const Input* table, const unsigned* tokens, float* out, int columns) {
    const Input* const from = table + static_cast<unsigned long long>(tokens[blockIdx.x]) * columns;
    float* const to = out + static_cast<unsigned long long>(blockIdx.x) * columns;
    for (int column = threadIdx.x; column < columns; column += THREADS) to[column] = to_float(from[column]);
}
";

const RMS_NORM: &str = r"
KERNEL(THREADS) NAME(const float* x, const float* weight, Input* out, int columns, float epsilon) {
    const float* const from = x + static_cast<unsigned long long>(blockIdx.x) * columns;
    Input* const to = out + static_cast<unsigned long long>(blockIdx.x) * columns;
    float sum = 0.0f;
    for (int column = threadIdx.x; column < columns; column += THREADS) sum += from[column] * from[column];
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    SHARED(float, sums, THREADS / 32);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    sync_block();
    float total = 0.0f;
    for (int warp = 0; warp < THREADS / 32; warp++) total += sums[warp];
    const float scale = 1.0f / sqrtf(total / static_cast<float>(columns) + epsilon);
    for (int column = threadIdx.x; column < columns; column += THREADS) {
        to[column] = from_float<Input>(from[column] * scale * weight[column]);
    }
}
";

const SWIGLU: &str = r"
KERNEL(THREADS) NAME(const float* gate_up, Input* out, int columns) {
    const float* const gate = gate_up + static_cast<unsigned long long>(blockIdx.x) * 2 * columns;
    Input* const to = out + static_cast<unsigned long long>(blockIdx.x) * columns;
    for (int part = 0; part < 4; part++) {
        const int column = (blockIdx.y * 4 + part) * THREADS + threadIdx.x;
        if (column >= columns) return;
        to[column] = from_float<Input>(gate[column] / (1.0f + expf(-gate[column])) * gate[columns + column]);
    }
}
";

const ROUND: &str = r"
KERNEL(THREADS) NAME(const float* x, Input* out, int count) {
    for (int part = 0; part < 4; part++) {
        const int index = (blockIdx.x * 4 + part) * THREADS + threadIdx.x;
        if (index >= count) return;
        out[index] = from_float<Input>(x[index]);
    }
}
";

const ARGMAX: &str = r"
// Whether a logit goes before another: the larger first, the lower token first in a tie.
inline bool before(float logit, int token, float other, int other_token) {
    return logit > other || (logit == other && token < other_token);
}

KERNEL(THREADS) NAME(const float* logits, int count, unsigned* token) {
    float best = logits[0];
    int best_token = 0;
    for (int index = threadIdx.x; index < count; index += THREADS) {
        if (before(logits[index], index, best, best_token)) {
            best = logits[index];
            best_token = index;
        }
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        const float other = shuffle_xor(best, mask);
        const int other_token = shuffle_xor(best_token, mask);
        if (before(other, other_token, best, best_token)) {
            best = other;
            best_token = other_token;
        }
    }
    SHARED(float, bests, THREADS / 32);
    SHARED(int, tokens, THREADS / 32);
    if (threadIdx.x % 32 == 0) {
        bests[threadIdx.x / 32] = best;
        tokens[threadIdx.x / 32] = best_token;
    }
    sync_block();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < THREADS / 32; warp++) {
        if (before(bests[warp], tokens[warp], best, best_token)) {
            best = bests[warp];
            best_token = tokens[warp];
        }
    }
    *token = best_token;
}
";

const SAMPLE_HEADING: &str =
    "Draws a token: of the smallest set of most likely tokens whose probabilities reach top_p, the one at which their
running sum passes draw. Most likely first, the lower token first in a tie. One block.

Probabilities are whole numbers of 2^-30, so that their sums have no order. The token at which a running sum passes a
target is found without sorting: digit by digit, from a histogram of the masses of those that share the digits before.";

const SAMPLE: &str = r"
// What a token ranks by: its logit as an integer of the same order, then the lower token first, in 24 bits.
inline unsigned rank_of_logit(float logit) {
    const unsigned bits = float_bits(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline unsigned rank_of_token(int token) { return 0xffffffu - static_cast<unsigned>(token); }

// The tokens with their probabilities as multiples of 2^-30.
struct Masses {
    const float* logits;
    int count;
    float largest;  // logit
    float factor;   // log2(e) / temperature
    float scale;    // 2^30 / sum of the exponentials

    inline float exponential(int token) const { return exp2_fast((logits[token] - largest) * factor); }
    inline unsigned of(int token) const { return static_cast<unsigned>(exponential(token) * scale + 0.5f); }
};

// A token, its mass, and the mass of those before it.
struct Choice {
    int token;
    unsigned mass;
    unsigned before;
};

// The token at which the running sum of the masses first exceeds `target`, which is below their total. One digit of
// the ranks at a time, four of the logit's and three of the token's, so that the last histogram is of one token.
inline Choice choose(const Masses& masses, unsigned target) {
    SHARED(unsigned, histogram, 256);
    SHARED(unsigned, found, 2);
    unsigned logit_digits = 0, logit_rank = 0, token_digits = 0, token_rank = 0, before = 0, digit = 0;
    for (int round = 0; round < 7; round++) {
        const int shift = round < 4 ? 24 - 8 * round : 48 - 8 * round;
        for (int bin = threadIdx.x; bin < 256; bin += THREADS) histogram[bin] = 0;
        sync_block();
        for (int token = threadIdx.x; token < masses.count; token += THREADS) {
            const unsigned high = rank_of_logit(masses.logits[token]), low = rank_of_token(token);
            if ((high & logit_digits) != logit_rank || (low & token_digits) != token_rank) continue;
            const unsigned mass = masses.of(token);
            if (mass > 0) atomic_add(&histogram[(round < 4 ? high : low) >> shift & 0xffu], mass);
        }
        sync_block();
        if (threadIdx.x == 0) {
            unsigned bin = 255, sum = before;
            while (bin > 0 && sum + histogram[bin] <= target) sum += histogram[bin--];
            found[0] = bin;
            found[1] = sum;
        }
        sync_block();
        digit = found[0];
        before = found[1];
        if (round < 4) {
            logit_digits |= 0xffu << shift;
            logit_rank |= digit << shift;
        } else {
            token_digits |= 0xffu << shift;
            token_rank |= digit << shift;
        }
    }
    const Choice choice = {static_cast<int>(0xffffffu - token_rank), histogram[digit], before};
    sync_block();
    return choice;
}

KERNEL(THREADS) NAME(const float* logits, int count, float temperature, float top_p, float draw, unsigned* token) {
    SHARED(float, parts, THREADS / 32);
    const int warp = threadIdx.x / 32;
    Masses masses = {logits, count, logits[0], 1.4426950408889634f / temperature, 0.0f};

    float largest = logits[0];
    for (int index = threadIdx.x; index < count; index += THREADS) largest = fmaxf(largest, logits[index]);
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    if (threadIdx.x % 32 == 0) parts[warp] = largest;
    sync_block();
    for (int other = 0; other < THREADS / 32; other++) masses.largest = fmaxf(masses.largest, parts[other]);
    sync_block();

    float sum = 0.0f;
    for (int index = threadIdx.x; index < count; index += THREADS) sum += masses.exponential(index);
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) parts[warp] = sum;
    sync_block();
    float total = 0.0f;
    for (int other = 0; other < THREADS / 32; other++) total += parts[other];
    masses.scale = 1073741824.0f / total;

    SHARED(unsigned, mass, 1);
    if (threadIdx.x == 0) mass[0] = 0;
    sync_block();
    unsigned own = 0;
    for (int index = threadIdx.x; index < count; index += THREADS) own += masses.of(index);
    if (own > 0) atomic_add(&mass[0], own);
    sync_block();
    unsigned kept = mass[0];
    if (top_p < 1.0f) {
        const double reached = ceil(static_cast<double>(top_p) * kept);
        const Choice last = choose(masses, reached > 1.0 ? static_cast<unsigned>(reached) - 1 : 0);
        kept = last.before + last.mass;
    }
    const unsigned target = static_cast<unsigned>(static_cast<double>(draw) * kept);
    const Choice drawn = choose(masses, min(target, kept - 1));
    if (threadIdx.x == 0) *token = drawn.token;
}
";
