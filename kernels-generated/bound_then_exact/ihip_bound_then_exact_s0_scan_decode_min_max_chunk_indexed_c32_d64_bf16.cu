// Decoding, stage 0: scores chunks of 32 tokens for one query by the bounds of their keys.
// 8 lanes take one chunk at a time, for all heads of a group; blocks of threads stride over the chunks.

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

#line 1 "BoundThenExact, stage 0"

// What changes from step to step is read from memory, so that a captured graph stays valid.
enum StepWord { STEP_START = 0, STEP_ROWS = 1, STEP_T_MAX = 2, STEP_FIRST_ROW = 3 };

using Cached = bf16;  // element of the key-value cache
using Activation = float;

constexpr int QUERY_HEADS = 9;         // query heads
constexpr int KV_HEADS = 3;            // key-value heads
constexpr int GROUP = 3;               // query heads that share a key-value head
constexpr int HEAD_DIM = 64;           // elements of a head
constexpr int HALF = 32;               // element j rotates with element j + HALF
constexpr int QKV_ROW = 960;           // elements of a row of projections
constexpr int PAGE = 16;               // tokens of a page of the cache
constexpr int SINK = 256;              // first tokens, which every query sees
constexpr int WINDOW = 1024;           // most recent tokens, which every query sees
constexpr int CHUNK = 32;              // tokens of a chunk
constexpr int QUERY_BLOCK = 32;        // queries that share a ranking
constexpr int SCAN_WINDOW = 992;       // chunks that begin nearer than this are not scanned
constexpr float QUERY_SCALE = 0.125f;  // factor of every query
constexpr float NEVER = -32000.0f;     // score of a chunk that nobody may see
constexpr int THREADS = 128;           // threads of a block
constexpr int VECTOR = 8;              // elements of a 16-byte load
constexpr int LANES = 8;               // lanes that read one key together
constexpr int TEAMS = 4;               // such teams in a warp

// Sixteen bytes of a key: one load.
struct alignas(16) Vector {
    Cached at[VECTOR];
};

// A float as an integer of the same order.
inline unsigned ordered(float value) {
    const unsigned bits = float_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Chunks of the list where the grid is laid out for t_max keys, and the first token of each: the sequence after the
// sinks is cut evenly.
inline int chunk_count(int t_max) { return (max(0, t_max - SINK - WINDOW) + CHUNK - 1) / CHUNK; }

inline int chunk_start(int chunk) { return SINK + chunk * CHUNK; }

KERNEL(THREADS) ihip_bound_then_exact_s0_scan_decode_min_max_chunk_indexed_c32_d64_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ bounds,
    const float2* __restrict__ rope_table, unsigned* scores, int score_stride) {
    SHARED(float, queries, GROUP * HEAD_DIM);
    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    const int kv_head = blockIdx.y, thread = threadIdx.x;
    const int limit = position - SCAN_WINDOW;
    const int chunks = chunk_count(step[STEP_T_MAX]);

    for (int item = thread; item < GROUP * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Activation* const query =
            &qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + (kv_head * GROUP + head) * HEAD_DIM + element];
        float x = to_float(query[0]) * QUERY_SCALE, y = to_float(query[HALF]) * QUERY_SCALE;
        queries[head * HEAD_DIM + element] = x;
        queries[head * HEAD_DIM + element + HALF] = y;
    }
    sync_block();

    const int lane = thread % LANES, team = thread % 32 / LANES;
    const int warps = gridDim.x * (THREADS / 32), warp = blockIdx.x * (THREADS / 32) + thread / 32;
    // The loop is the same for all lanes of a warp, because they exchange partial products.
    for (int base = warp * TEAMS; base < chunks; base += warps * TEAMS) {
        // The list is ascending: where one chunk lies beyond the limit, so does every later one.
        if (chunk_start(base) > limit) break;
        const int chunk = min(base + team, chunks - 1), first_token = chunk_start(chunk);
        const bool scored = base + team < chunks && first_token <= limit;
        // A key's position is the index of its chunk. Turning the query back by it serves all keys of the chunk.
        const int distance = max(0, min(position, chunks + SCAN_WINDOW) - chunk);
        float2 angle[VECTOR];
        for (int e = 0; e < VECTOR; ++e) angle[e] = rope_table[distance * HALF + (lane * VECTOR + e) % HALF];
        float best[GROUP];
        const unsigned long long row = static_cast<unsigned long long>(scored ? (first_token - SINK) / CHUNK : 0) * KV_HEADS + kv_head;
        const Vector least = *reinterpret_cast<const Vector*>(&bounds[row * 2 * HEAD_DIM + lane * VECTOR]);
        const Vector greatest = *reinterpret_cast<const Vector*>(&bounds[(row * 2 + 1) * HEAD_DIM + lane * VECTOR]);
#pragma unroll
        for (int head = 0; head < GROUP; ++head) {
                float query[VECTOR];
                for (int e = 0; e < VECTOR; ++e) {
                    const int element = lane * VECTOR + e;
                    const float here = queries[head * HEAD_DIM + element];
                    const float there = queries[head * HEAD_DIM + (element + HALF) % HEAD_DIM];
                    query[e] = here * angle[e].x + (element < HALF ? -there : there) * angle[e].y;
                }
                float score = 0.0f;
                for (int e = 0; e < VECTOR; ++e) score += max(query[e] * to_float(least.at[e]), query[e] * to_float(greatest.at[e]));
                for (int mask = LANES / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
                best[head] = score;
        }
        float score = best[0];
        for (int head = 1; head < GROUP; ++head) score = max(score, best[head]);
        if (lane == 0 && scored) atomic_max(&scores[chunk], ordered(max(score, NEVER)));
    }
}
