// Decoding: attention of one query over 128 of its keys: of the kept blocks, of the sinks, or of the window.
// A block of threads takes HEADS query heads of a group; the last one of them joins the splits.

#line 1 "prelude.cu"
// The prelude of every kernel: the only place for assembly, shared-memory declarations and shared addresses.
// Each primitive has two bodies: NVRTC's, and one for the emulator, which compiles this very text for the host.
// No CUDA header is included. What NVRTC knows by itself is used as it is: threadIdx, blockIdx, gridDim, float2,
// make_float2, min, max, __popc, __byte_perm and the functions of <math.h>. Written for sm_80 and everything after it.

// A kernel's entry: `KERNEL(128) name(arguments) { … }`. The bound lets the compiler plan registers for that many threads,
// and `KERNEL(128, 4)` so that four such blocks fit a multiprocessor at a time.
#ifdef IHIP_EMULATOR
#define KERNEL(...) extern "C" void
#else
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#endif

// A static shared array. 16-byte alignment for every type, because copy_async_16 and load_matrix_x4 ask for it.
#ifdef IHIP_EMULATOR
#define SHARED(type, name, count) \
    static char name##_key;       \
    type(&name)[count] = *static_cast<type(*)[count]>(emulator::shared(&name##_key, sizeof(type) * (count)))
#else
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#endif

// The launch's dynamic shared memory, seen as `type*`; every declaration of one kernel names the same bytes.
#ifdef IHIP_EMULATOR
#define SHARED_DYNAMIC(type, name) type* const name = static_cast<type*>(emulator::shared_dynamic())
#else
#define SHARED_DYNAMIC(type, name)                            \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared)
#endif

// ---- Element types. Arithmetic is f32 throughout: these two are only stored, converted and multiplied by mma_16x8x16.

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

// The bits of a float, and back.
inline unsigned float_bits(float value) {
#ifdef IHIP_EMULATOR
    return emulator::reinterpret<unsigned>(value);
#else
    return __float_as_uint(value);
#endif
}

inline float bits_float(unsigned bits) {
#ifdef IHIP_EMULATOR
    return emulator::reinterpret<float>(bits);
#else
    return __uint_as_float(bits);
#endif
}

// Exact: every bf16 and f16 is a float.
inline float to_float(float value) { return value; }

inline float to_float(bf16 value) { return bits_float(static_cast<unsigned>(value.bits) << 16); }

inline float to_float(f16 value) {
#ifdef IHIP_EMULATOR
    return emulator::float_of_f16(value.bits);
#else
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#endif
}

// Rounds to nearest, ties to even; too large becomes infinity, every NaN becomes 0x7fff.
template <typename T>
inline T from_float(float value);

template <>
inline float from_float<float>(float value) { return value; }

template <>
inline bf16 from_float<bf16>(float value) {
#ifdef IHIP_EMULATOR
    return bf16{emulator::bf16_of_float(value)};
#else
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#endif
}

template <>
inline f16 from_float<f16>(float value) {
#ifdef IHIP_EMULATOR
    return f16{emulator::f16_of_float(value)};
#else
    f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#endif
}

// Two rounded values in one register, as the fragments of mma_16x8x16 hold them: `low` in bits 0-15.
template <typename T>
inline unsigned pack(float low, float high) {
    return static_cast<unsigned>(from_float<T>(low).bits) | static_cast<unsigned>(from_float<T>(high).bits) << 16;
}

#ifndef IHIP_EMULATOR
// The compiler does not merge two conversions into the paired instruction by itself.
template <>
inline unsigned pack<bf16>(float low, float high) {
    unsigned result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

template <>
inline unsigned pack<f16>(float low, float high) {
    unsigned result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
#endif

// a * b + c of the halves of packed bf16, each rounded once; numbers below the smallest normal are no zeros.
inline unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
#ifdef IHIP_EMULATOR
    return emulator::multiply_add(a, b, c);
#else
    unsigned result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
#endif
}

// 2^value to 2 units in the last place; results below 2^-126 are zero, which no softmax weight notices.
inline float exp2_fast(float value) {
#ifdef IHIP_EMULATOR
    return emulator::exp2_flushed(value);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#endif
}

// 1 / sqrt(value) to about 2^-22 of its size, for normal values.
inline float rsqrt_fast(float value) {
#ifdef IHIP_EMULATOR
    return 1.0f / sqrtf(value);
#else
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#endif
}

// ---- Threads together. A collective of a warp is reached by all 32 lanes, sync_block by all threads of the block.

// Every thread arrives before one goes on; shared and global writes made before it are seen by the block after it.
inline void sync_block() {
#ifdef IHIP_EMULATOR
    emulator::sync_block();
#else
    __syncthreads();
#endif
}

// The same for the lanes of a warp, which do not run in lockstep by themselves.
inline void sync_warp() {
#ifdef IHIP_EMULATOR
    emulator::sync_warp();
#else
    __syncwarp();
#endif
}

// The value of the lane whose number differs by `mask`, and the value of a given lane (its number modulo 32).
template <typename T>
inline T shuffle_xor(T value, int mask) {
#ifdef IHIP_EMULATOR
    return emulator::exchange(value, static_cast<int>(threadIdx.x) ^ mask);
#else
    return __shfl_xor_sync(0xffffffffu, value, mask);
#endif
}

template <typename T>
inline T shuffle(T value, int lane) {
#ifdef IHIP_EMULATOR
    return emulator::exchange(value, lane);
#else
    return __shfl_sync(0xffffffffu, value, lane);
#endif
}

// Bit i is what lane i says.
inline unsigned ballot(bool predicate) {
#ifdef IHIP_EMULATOR
    return emulator::ballot(predicate);
#else
    return __ballot_sync(0xffffffffu, predicate);
#endif
}

// Relaxed, over the whole device; both return the value from before.
inline unsigned atomic_add(unsigned* address, unsigned value) {
#ifdef IHIP_EMULATOR
    return emulator::atomic_add(address, value);
#else
    return atomicAdd(address, value);
#endif
}

inline unsigned atomic_max(unsigned* address, unsigned value) {
#ifdef IHIP_EMULATOR
    return emulator::atomic_max(address, value);
#else
    return atomicMax(address, value);
#endif
}

// Writes before it are seen by the device before writes after it: needed by "the last block that arrives goes on".
inline void fence_device() {
#ifdef IHIP_EMULATOR
    emulator::fence();
#else
    __threadfence();
#endif
}

// ---- Shared memory: asynchronous copies and matrix loads.

#ifndef IHIP_EMULATOR
// The 32-bit address that cp.async and ldmatrix take for a generic pointer into shared memory.
inline unsigned shared_address(const void* pointer) {
    unsigned long long address;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(pointer));
    return static_cast<unsigned>(address);
}
#endif

// Starts copying 16 bytes, both addresses 16-byte aligned; where not `valid`, writes zeros and reads nothing.
// The bytes are there for this thread after copy_async_wait, for the others after a sync that follows it.
inline void copy_async_16(void* shared, const void* global, bool valid) {
#ifdef IHIP_EMULATOR
    emulator::copy_async(shared, global, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
#endif
}

// Closes a group of this thread's copies.
inline void copy_async_commit() {
#ifdef IHIP_EMULATOR
    emulator::copy_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's newest groups are still under way.
template <int pending>
inline void copy_async_wait() {
#ifdef IHIP_EMULATOR
    emulator::copy_async_wait(pending);
#else
    asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
#endif
}

// Loads four 8x8 matrices of 16-bit elements: lane i gives the 16-byte aligned address of row i % 8 of matrix i / 8.
// Lane i receives from matrix j, in r[j], the elements (i / 4, 2 * (i % 4)) and (i / 4, 2 * (i % 4) + 1).
inline void load_matrix_x4(unsigned (&r)[4], const void* shared_row) {
#ifdef IHIP_EMULATOR
    emulator::load_matrix(r, shared_row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared_row)) : "memory");
#endif
}

// The same of the transposed matrices: elements (2 * (i % 4), i / 4) and (2 * (i % 4) + 1, i / 4).
inline void load_matrix_x4_transposed(unsigned (&r)[4], const void* shared_row) {
#ifdef IHIP_EMULATOR
    emulator::load_matrix(r, shared_row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared_row)) : "memory");
#endif
}

// ---- Tensor cores.

// d += a · b for the warp: a 16x16, b 16x8, d 16x8 in f32. With g = lane / 4 and t = 2 * (lane % 4), a lane holds
//   a[0] (g, t..t+1)  a[1] (g + 8, t..t+1)  a[2] (g, t+8..t+9)  a[3] (g + 8, t+8..t+9)
//   b[0] (t..t+1, g)  b[1] (t+8..t+9, g)    d[0..1] (g, t..t+1)  d[2..3] (g + 8, t..t+1)
// The first of a pair is in the low half. a comes from load_matrix_x4 of a row-major tile.
template <typename T>
inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

template <>
inline void mma_16x8x16<bf16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef IHIP_EMULATOR
    emulator::mma_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <>
inline void mma_16x8x16<f16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef IHIP_EMULATOR
    emulator::mma_f16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#line 1 "InfLlm, attend"

// What changes from step to step is read from memory, so that a captured graph stays valid.
enum StepWord { STEP_START = 0, STEP_ROWS = 1, STEP_T_MAX = 2, STEP_FIRST_ROW = 3 };

using Cached = bf16;  // element of the key-value cache
using Activation = float;

constexpr int QUERY_HEADS = 9;              // query heads
constexpr int KV_HEADS = 3;                 // key-value heads
constexpr int GROUP = 3;                    // query heads that share a key-value head
constexpr int HEAD_DIM = 64;                // elements of a head
constexpr int HALF = 32;                    // element j rotates with element j + HALF
constexpr int QKV_ROW = 960;                // elements of a row of projections
constexpr int PAGE = 16;                    // tokens of a page of the cache
constexpr int SINK = 128;                   // first tokens, which every query sees
constexpr int WINDOW = 4096;                // most recent tokens, which every query sees
constexpr int BLOCK = 128;                  // tokens of a block of the list
constexpr int KEEP = 16;                    // entries of the list; beyond its count they do not matter
constexpr int LISTED_SPLITS = 16;           // pieces of the list, the first ones
constexpr int SINK_SPLITS = 1;              // pieces of the sinks, which follow; the rest is the window's
constexpr int SPLITS = 49;                  // pieces of the keys
constexpr int HEADS = 3;                    // query heads of a block of threads: they share the keys
constexpr int FOURS = 1;                    // fours of heads
constexpr int TILE_KEYS = 128;              // keys of a split
constexpr int WEIGHT_ROW = 136;             // weights of a head, and a gap: heads lie in other banks of shared memory
constexpr int THREADS = 256;                // threads of a block
constexpr int WARPS = 8;                    // warps of a block
constexpr int TEAM = 8;                     // lanes that take a key together
constexpr int TEAMS = 32;                   // such teams in a block
constexpr int KEYS_EACH = 4;                // keys of a team
constexpr int PIECE = 8;                    // elements of a 16-byte copy
constexpr int QUADS = 48;                   // quads of output
constexpr int PARTS = 5;                    // threads that share the keys of a quad
constexpr int BATCH = 10;                   // splits that a thread joins at a time
constexpr int NOWHERE = -1;                 // token of an empty slot
constexpr int PIECES = 8;                   // 16-byte pieces of a row
constexpr float QUERY_SCALE = 0.18033688f;  // factor of every query, times log2(e)
constexpr float LOWEST = -3.4028235e38f;    // below every score

// Four neighbouring elements: one load or store of 8 or 16 bytes.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
    T at[4];
};

template <typename T>
inline Quad<float> load_quad(const T* from) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(from);
    return {{to_float(quad.at[0]), to_float(quad.at[1]), to_float(quad.at[2]), to_float(quad.at[3])}};
}

template <typename T>
inline void store_quad(T* to, const Quad<float>& quad) {
    *reinterpret_cast<Quad<T>*>(to) = {{from_float<T>(quad.at[0]), from_float<T>(quad.at[1]),
                                        from_float<T>(quad.at[2]), from_float<T>(quad.at[3])}};
}

// The row of a token in the cache: [physical page][kv_head][page token].
inline unsigned cache_row(const unsigned* page_table, int token, int kv_head) {
    return (page_table[token / PAGE] * KV_HEADS + kv_head) * PAGE + token % PAGE;
}

// Where a piece of 16 bytes of a row lies in shared memory: the same pieces of neighbouring rows are in other banks.
inline int piece_at(int row, int piece) { return row * HEAD_DIM + (piece ^ (row & min(7, (PIECES & -PIECES) - 1))) * 8; }

// Turns the pair (x, y) = (element j, element j + HALF) by an angle given as (cosine, sine).
inline void rotate(float& x, float& y, float2 angle) {
    const float turned = x * angle.x - y * angle.y;
    y = y * angle.x + x * angle.y;
    x = turned;
}

KERNEL(THREADS) ihip_inf_llm_attend_decode_infllm_k2048_d64_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,
    const Cached* __restrict__ values, const unsigned* __restrict__ page_table,
    const float2* __restrict__ rope_table, const int* blocks, const int* counts, float* partials, float* partial_sums,
    unsigned* arrivals, Activation* out) {
    SHARED_DYNAMIC(Cached, value_tile);  // [TILE_KEYS][HEAD_DIM]
    SHARED(float, queries, HEADS * HEAD_DIM);
    SHARED(float, weights, HEADS * WEIGHT_ROW);
    SHARED(float, shares, PARTS * HEADS * HEAD_DIM);
    SHARED(int, slot_token, TILE_KEYS);
    SHARED(int, slot_position, TILE_KEYS);
    SHARED(unsigned, slot_row, TILE_KEYS);
    SHARED(float, largest, PARTS * HEADS);
    SHARED(float, total, PARTS * HEADS);
    SHARED(unsigned, arrived, 1);

    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, split = blockIdx.x;
    const int first_head = blockIdx.y * HEADS, kv_head = first_head / GROUP;
    const int* const list = blocks;
    const int count = counts[0];
    // Sinks and kept keys all stand at the window's distance; positions are counted from there.
    const int origin = max(0, position - WINDOW);

    if (thread < TILE_KEYS) {
        int token = NOWHERE, at = 0;
        if (split < LISTED_SPLITS) {
            const int slot = split * TILE_KEYS + thread, first = list[min(slot / BLOCK, KEEP - 1)];
            if (slot < count * BLOCK) token = first + slot % BLOCK;
            if (token < SINK || position - token < WINDOW) token = NOWHERE;  // seen as a sink or in the window
            at = 0;
        } else if (split < LISTED_SPLITS + SINK_SPLITS) {
            const int sink = (split - LISTED_SPLITS) * TILE_KEYS + thread;
            if (sink < SINK && position - sink >= WINDOW) token = sink;
            at = 0;
        } else {
            const int recent = position - WINDOW + 1 + (split - LISTED_SPLITS - SINK_SPLITS) * TILE_KEYS + thread;
            if (recent >= 0 && recent <= position) token = recent;
            at = max(0, recent - origin);
        }
        slot_token[thread] = token;
        slot_row[thread] = cache_row(page_table, max(token, 0), kv_head);
        slot_position[thread] = token == NOWHERE ? 0 : at;
    }

    for (int item = thread; item < HEADS * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Activation* const from =
            &qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + (first_head + head) * HEAD_DIM + element];
        float x = to_float(from[0]) * QUERY_SCALE, y = to_float(from[HALF]) * QUERY_SCALE;
        rotate(x, y, rope_table[(position - origin) * HALF + element]);
        queries[head * HEAD_DIM + element] = x;
        queries[head * HEAD_DIM + element + HALF] = y;
    }
    sync_block();
    // All that the block reads of the cache is under way before the first of it is used.
    for (int item = thread; item < TILE_KEYS * HEAD_DIM / PIECE; item += THREADS) {
        const int slot = item / (HEAD_DIM / PIECE), element = item % (HEAD_DIM / PIECE) * PIECE;
        const unsigned long long row = slot_row[slot];
        copy_async_16(&value_tile[piece_at(slot, element / PIECE)], &values[row * HEAD_DIM + element], slot_token[slot] != NOWHERE);
    }
    copy_async_commit();
    // A lane of a team has four elements of a key and the four that they turn with.
    const int element = lane % TEAM * 4, team = thread / TEAM;
    Quad<float> x[KEYS_EACH], y[KEYS_EACH];
    for (int i = 0; i < KEYS_EACH; ++i) {
        const unsigned long long row = slot_row[team + i * TEAMS];
        x[i] = load_quad(&keys[row * HEAD_DIM + element]);
        y[i] = load_quad(&keys[row * HEAD_DIM + element + HALF]);
    }
    // Positions mostly follow one another: from a team's key to its next, angles turn by that of TEAMS positions.
    int turned_to = slot_position[team];
    float2 angle[4], onward[4];
    for (int e = 0; e < 4; ++e) {
        angle[e] = rope_table[turned_to * HALF + element + e];
        onward[e] = rope_table[TEAMS * HALF + element + e];
    }
    Quad<float> query_x[HEADS], query_y[HEADS];
    for (int head = 0; head < HEADS; ++head) {
        query_x[head] = load_quad(&queries[head * HEAD_DIM + element]);
        query_y[head] = load_quad(&queries[head * HEAD_DIM + element + HALF]);
    }
    for (int i = 0; i < KEYS_EACH; ++i) {
        const int slot = team + i * TEAMS;
        if (slot_position[slot] != turned_to) {
            const bool follows = slot_position[slot] == turned_to + TEAMS;
            turned_to = slot_position[slot];
            for (int e = 0; e < 4; ++e) {
                if (follows) {
                    rotate(angle[e].x, angle[e].y, onward[e]);
                } else {
                    angle[e] = rope_table[turned_to * HALF + element + e];
                }
            }
        }
        for (int e = 0; e < 4; ++e) rotate(x[i].at[e], y[i].at[e], angle[e]);
        for (int four = 0; four < FOURS; ++four) {
            float score[4] = {};
            for (int own = 0; own < 4; ++own) {
                const int head = four * 4 + own;
                if (head >= HEADS) continue;
                for (int e = 0; e < 4; ++e)
                    score[own] += query_x[head].at[e] * x[i].at[e] + query_y[head].at[e] * y[i].at[e];
            }
            // Each lane passes on the sums of half the heads, twice: what is left is summed up for one head.
            const bool odd = lane % 2 == 1, upper = lane / 2 % 2 == 1;
            const float one = (odd ? score[1] : score[0]) + shuffle_xor(odd ? score[0] : score[1], 1);
            const float other = (odd ? score[3] : score[2]) + shuffle_xor(odd ? score[2] : score[3], 1);
            float sum = (upper ? other : one) + shuffle_xor(upper ? one : other, 2);
            for (int mask = 4; mask < TEAM; mask *= 2) sum += shuffle_xor(sum, mask);
            const int head = four * 4 + lane % 4;
            if (lane % TEAM < 4 && head < HEADS) weights[head * WEIGHT_ROW + slot] = slot_token[slot] == NOWHERE ? LOWEST : sum;
        }
    }
    sync_block();
    // A warp a head.
    for (int head = warp; head < HEADS; head += WARPS) {
        float own[TILE_KEYS / 32], top = LOWEST, sum = 0.0f;
        for (int i = 0; i < TILE_KEYS / 32; ++i) {
            own[i] = weights[head * WEIGHT_ROW + lane + 32 * i];
            top = max(top, own[i]);
        }
        for (int mask = 16; mask > 0; mask /= 2) top = max(top, shuffle_xor(top, mask));
        for (int i = 0; i < TILE_KEYS / 32; ++i) {
            own[i] = own[i] > LOWEST ? exp2_fast(own[i] - top) : 0.0f;
            weights[head * WEIGHT_ROW + lane + 32 * i] = own[i];
            sum += own[i];
        }
        for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane == 0) {
            largest[head] = top;
            total[head] = sum;
        }
    }
    copy_async_wait<0>();
    sync_block();

    // Rows 0 to 7 are the heads' weights as the cache's type holds them, rows 8 to 15 what rounding took from them.
    // A warp has sixteen elements of the output at a time.
    const int across = lane % 4, down = lane / 4;
    for (int step = warp; step < HEAD_DIM / 16; step += WARPS) {
        float output[4][4] = {};
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
            unsigned factor[4], value[4];
            for (int half = 0; half < 2; ++half) {
                const float2* const pairs = reinterpret_cast<const float2*>(&weights[min(down, HEADS - 1) * WEIGHT_ROW]);
                const float2 pair = pairs[k * 8 + half * 4 + across];
                const unsigned whole = pack<Cached>(pair.x, pair.y);
                const Cached low = {static_cast<unsigned short>(whole)}, high = {static_cast<unsigned short>(whole >> 16)};
                const unsigned rest = pack<Cached>(pair.x - to_float(low), pair.y - to_float(high));
                factor[2 * half] = down < HEADS ? whole : 0;
                factor[2 * half + 1] = down < HEADS ? rest : 0;
            }
            load_matrix_x4_transposed(value, &value_tile[piece_at(k * 16 + lane % 16, 2 * step + lane / 16)]);
            // Two sums of each: products that wait for each other's sums are half as many.
            mma_16x8x16<Cached>(output[k % 2 * 2], factor, {value[0], value[1]});
            mma_16x8x16<Cached>(output[k % 2 * 2 + 1], factor, {value[2], value[3]});
        }
        if (down >= HEADS) continue;
        const unsigned long long part_row = (first_head + down) * SPLITS + split;
        float* const to = &partials[part_row * HEAD_DIM + step * 16 + across * 2];
        for (int n = 0; n < 2; ++n)
            for (int e = 0; e < 2; ++e)
                to[n * 8 + e] = output[n][e] + output[n + 2][e] + (output[n][e + 2] + output[n + 2][e + 2]);
    }
    if (thread < HEADS) {
        float* const to = &partial_sums[((first_head + thread) * SPLITS + split) * 2];
        to[0] = largest[thread];
        to[1] = total[thread];
    }
    const int quad = thread % QUADS, part = thread / QUADS;
    const int head = quad * 4 / HEAD_DIM, at = quad * 4 % HEAD_DIM;
    const unsigned long long row = first_head + head;

    // The last block of these heads joins their splits; no one waits for it.
    sync_block();
    if (thread == 0) {
        fence_device();
        arrived[0] = atomic_add(&arrivals[blockIdx.y], 1);
        fence_device();
    }
    sync_block();
    if (arrived[0] != SPLITS - 1) return;
    if (thread == 0) arrivals[blockIdx.y] = 0;
    float top = LOWEST, sum = 0.0f;
    Quad<float> joined = {};
    if (part < PARTS) {
        for (int first = part; first < SPLITS; first += BATCH * PARTS) {
            Quad<float> share[BATCH];
            float its_top[BATCH], its_sum[BATCH];
            for (int i = 0; i < BATCH; ++i) {
                const unsigned long long from = row * SPLITS + min(first + i * PARTS, SPLITS - 1);
                share[i] = load_quad(&partials[from * HEAD_DIM + at]);
                its_top[i] = first + i * PARTS < SPLITS ? partial_sums[from * 2] : LOWEST;
                its_sum[i] = partial_sums[from * 2 + 1];
            }
            float most = top;
            for (int i = 0; i < BATCH; ++i) most = max(most, its_top[i]);
            const float scale = exp2_fast(top - most);
            sum *= scale;
            for (int e = 0; e < 4; ++e) joined.at[e] *= scale;
            for (int i = 0; i < BATCH; ++i) {
                const float factor = its_top[i] > LOWEST ? exp2_fast(its_top[i] - most) : 0.0f;
                sum += its_sum[i] * factor;
                for (int e = 0; e < 4; ++e) joined.at[e] += share[i].at[e] * factor;
            }
            top = most;
        }
        store_quad(&shares[thread * 4], joined);
        if (at == 0) {
            largest[part * HEADS + head] = top;
            total[part * HEADS + head] = sum;
        }
    }
    sync_block();
    if (part > 0) return;
    for (int other = 1; other < PARTS; ++other) {
        const Quad<float> share = load_quad(&shares[(other * QUADS + quad) * 4]);
        const float its_top = largest[other * HEADS + head], most = max(top, its_top);
        const float scale = exp2_fast(top - most), factor = its_top > LOWEST ? exp2_fast(its_top - most) : 0.0f;
        sum = sum * scale + total[other * HEADS + head] * factor;
        for (int e = 0; e < 4; ++e) joined.at[e] = joined.at[e] * scale + share.at[e] * factor;
        top = most;
    }
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row without a visible key is zero
    for (int e = 0; e < 4; ++e) joined.at[e] *= factor;
    store_quad(&out[(static_cast<unsigned long long>(first_row) * QUERY_HEADS + row) * HEAD_DIM + at], joined);
}
