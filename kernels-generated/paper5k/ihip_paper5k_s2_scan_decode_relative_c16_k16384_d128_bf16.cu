// Decoding, stage 2: scores chunks of 16 tokens for one query by 5 halvings.
// Warps stride over the chunks of a key-value head, 1 at a time. The probes of every head of a group are the columns of a product.

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

#line 1 "Paper5k, stage 2"

// What changes from step to step is read from memory, so that a captured graph stays valid.
enum StepWord { STEP_START = 0, STEP_ROWS = 1, STEP_T_MAX = 2, STEP_FIRST_ROW = 3 };

using Cached = bf16;  // element of the key-value cache
using Activation = float;

constexpr int QUERY_HEADS = 32;              // query heads
constexpr int KV_HEADS = 8;                  // key-value heads
constexpr int GROUP = 4;                     // query heads that share a key-value head
constexpr int HEAD_DIM = 128;                // elements of a head
constexpr int HALF = 64;                     // element j rotates with element j + HALF
constexpr int QKV_ROW = 6144;                // elements of a row of projections
constexpr int PAGE = 16;                     // tokens of a page of the cache
constexpr int SINK = 256;                    // first tokens, which every query sees
constexpr int WINDOW = 1024;                 // most recent tokens, which every query sees
constexpr int CHUNK = 16;                    // tokens of a chunk
constexpr int QUERY_BLOCK = 64;              // queries that share a ranking
constexpr int KEPT = 512;                    // chunks that the stage before keeps
constexpr int SPLIT = 2;                     // chunks that each of them is cut into
constexpr int BLOCK_RATIO = 1;               // query blocks of this stage in one of the stage before
constexpr int PARENT_QUERY_BLOCK = 64;       // queries of a block of the stage before
constexpr int SCAN_WINDOW = 960;             // chunks that begin nearer than this are not scanned
constexpr int HALVINGS = 5;                  // two probes each
constexpr float QUERY_SCALE = 0.088388346f;  // factor of every query
constexpr float NEVER = -32000.0f;           // score of a chunk without a probe
constexpr float LOWEST = -3.4028235e38f;     // below every product
constexpr int THREADS = 128;                 // threads of a block
constexpr int ROWS = 8;                      // rows of a product that hold queries
constexpr int RIGHT_ROW = 4;                 // the first of those for right probes
constexpr int PROBES = 8;                    // columns of a product that are probes of one chunk
constexpr int CHUNKS = 1;                    // chunks that a warp descends at a time
constexpr int STEPS = 8;                     // products along a row

using Factor = Cached;  // what tensor cores multiply

constexpr int EACH = 8;   // elements of a load of a lane, 16 bytes, where four lanes load a key
constexpr int LOADS = 4;  // such loads of a key

// Eight neighbouring elements as pairs: sixteen bytes.
struct alignas(16) Pairs {
    unsigned at[4];
};

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

// A float as an integer of the same order.
inline unsigned ordered(float value) {
    const unsigned bits = float_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Turns the pair (x, y) = (element j, element j + HALF) by an angle given as (cosine, sine).
inline void rotate(float& x, float& y, float2 angle) {
    const float turned = x * angle.x - y * angle.y;
    y = y * angle.x + x * angle.y;
    x = turned;
}

// Chunks of the list, and the first token of each: what the stage before kept, ascending, each cut into SPLIT. A kept
// list is KEPT entries and how many of them there are.
inline int chunk_count(const int* kept) { return kept[KEPT] * SPLIT; }

inline int chunk_start(const int* kept, int chunk) { return kept[chunk / SPLIT] + chunk % SPLIT * CHUNK; }

KERNEL(THREADS) ihip_paper5k_s2_scan_decode_relative_c16_k16384_d128_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,
    const unsigned* __restrict__ page_table, const float2* __restrict__ rope_table,
    const int* kept, unsigned* scores, int score_stride) {
    SHARED(float, queries, 2 * GROUP * HEAD_DIM);
    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    const int kv_head = blockIdx.y, thread = threadIdx.x;
    const int limit = position - SCAN_WINDOW;
    const int chunks = chunk_count(kept);

    for (int item = thread; item < GROUP * HALF; item += THREADS) {
        const int head = item / HALF, element = item % HALF;
        const Activation* const query =
            &qkv[static_cast<unsigned long long>(first_row) * QKV_ROW + (kv_head * GROUP + head) * HEAD_DIM + element];
        float x = to_float(query[0]) * QUERY_SCALE, y = to_float(query[HALF]) * QUERY_SCALE;
        // Left probes are at position 0, right ones at 1, the query at SCAN_WINDOW + 1: what counts is the distance.
        float right_x = x, right_y = y;
        rotate(right_x, right_y, rope_table[SCAN_WINDOW * HALF + element]);
        queries[(GROUP + head) * HEAD_DIM + element] = right_x;
        queries[(GROUP + head) * HEAD_DIM + element + HALF] = right_y;
        rotate(x, y, rope_table[(SCAN_WINDOW + 1) * HALF + element]);
        queries[head * HEAD_DIM + element] = x;
        queries[head * HEAD_DIM + element + HALF] = y;
    }
    sync_block();

    const int lane = thread % 32, across = lane % 4, down = lane / 4;
    // The left factor of the products. Rows from 8 on hold what rounding to the factors' type took from the first ones.
    // Elements come in the order in which lanes load them from a key: a product does not mind.
    unsigned factor[STEPS][4];
    for (int load = 0; load < LOADS; ++load)
        for (int pair = 0; pair < EACH / 2; ++pair) {
            float whole[2], rest[2];
            for (int e = 0; e < 2; ++e) {
                const int element = (load * 4 + across) * EACH + pair * 2 + e;
                const float x = down < ROWS ? queries[down * HEAD_DIM + element] : 0.0f;
                whole[e] = to_float(from_float<Factor>(x));
                rest[e] = x - whole[e];
            }
            unsigned(&part)[4] = factor[load * (EACH / 4) + pair / 2];
            part[pair % 2 * 2] = pack<Factor>(whole[0], whole[1]);
            part[pair % 2 * 2 + 1] = pack<Factor>(rest[0], rest[1]);
        }
    // A lane loads its part of the probe in column `down`: left probes are in even columns, right ones in odd ones.
    const int slot = min(down / PROBES, CHUNKS - 1);
    const int head = down % PROBES / 2;
    const int warps = gridDim.x * (THREADS / 32), warp = blockIdx.x * (THREADS / 32) + thread / 32;
    // The loop is the same for all lanes of a warp, because they compute products together.
    for (int base = warp * CHUNKS; base < chunks; base += warps * CHUNKS) {
        // The list is ascending: where one chunk lies beyond the limit, so does every later one.
        if (chunk_start(kept, base) > limit) break;
        const bool mine = down < PROBES * CHUNKS && base + slot < chunks;
        const int chunk = min(base + slot, chunks - 1), start = chunk_start(kept, chunk);
        // The lanes of a chunk hold the pages that it lies in.
        const int first_page = start / PAGE;
        const unsigned pages = page_table[min(first_page + lane % (32 / CHUNKS), position / PAGE)];
        int left = start, right = mine ? start + CHUNK : start;
        float best = LOWEST;
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The middle token of each half stands for it. An inactive column is loaded and ignored.
            const bool active = left < right && left <= limit;
            const int middle = (left + right) / 2;
            const int token = down % 2 == 0 ? (left + middle) / 2 : (middle + right) / 2;
            const unsigned page = shuffle(pages, slot * (32 / CHUNKS) + (active ? token / PAGE - first_page : 0));
            const unsigned long long row = (page * KV_HEADS + kv_head) * PAGE + (active ? token % PAGE : 0);
            const Probe probe = load_probe(keys, row, across);
            float product[2][4] = {};
            for (int i = 0; i < STEPS; ++i)
                mma_16x8x16<Factor>(product[i % 2], factor[i], {probe.at[2 * i], probe.at[2 * i + 1]});
            // Of row `down`: columns 2 * across and 2 * across + 1.
            const float even = product[0][0] + product[1][0] + (product[0][2] + product[1][2]);
            const float odd = product[0][1] + product[1][1] + (product[0][3] + product[1][3]);
            const float left_score = shuffle(even, head * 4 + down / 2);
            const float right_score = shuffle(odd, (RIGHT_ROW + head) * 4 + down / 2);
            // A tie goes right. The score is the best probe of all halvings, not the one the descent ends at.
            if (active) {
                if (left_score > right_score) {
                    right = middle;
                } else {
                    left = middle;
                }
                best = max(best, max(left_score, right_score));
            }
        }
        for (int mask = 8; mask < 4 * PROBES; mask *= 2) best = max(best, shuffle_xor(best, mask));
        if (across == 0 && down % PROBES == 0 && best > LOWEST)
            atomic_max(&scores[chunk], ordered(max(best, NEVER)));
    }
}
