// Prefill, stage 1: scores chunks of 32 tokens for blocks of 64 queries by 5 halvings.
// A warp takes one head of one query block and 8 chunks at a time; a chunk's score is the largest
// product of any averaged query with any probe, over all heads.

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

#line 1 "Paper5k, stage 1"

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
constexpr int CHUNK = 32;                    // tokens of a chunk
constexpr int QUERY_BLOCK = 64;              // queries that share a ranking
constexpr int KEPT = 512;                    // chunks that the stage before keeps
constexpr int SPLIT = 2;                     // chunks that each of them is cut into
constexpr int BLOCK_RATIO = 1;               // query blocks of this stage in one of the stage before
constexpr int PARENT_QUERY_BLOCK = 64;       // queries of a block of the stage before
constexpr int SCAN_WINDOW = 960;             // chunks that begin nearer than this are not scanned
constexpr int HALVINGS = 5;                  // two probes each
constexpr int QUERY_STRIDE = 4;              // neighbouring queries averaged into a row
constexpr float QUERY_SCALE = 0.088388346f;  // factor of every query
constexpr float NEVER = -32000.0f;           // score of a chunk without a probe
constexpr float LOWEST = -3.4028235e38f;     // below every product
constexpr int THREADS = 256;                 // threads of a block
constexpr int WARPS = 8;                     // warps of a block
constexpr int TEAMS = 4;                     // heads of a block that descend on their own, each with warps of its own
constexpr int CHUNKS = 8;                    // chunks that a warp descends at a time
constexpr int SETS = 1;                      // eights of them, each the columns of two products
constexpr int SIDES = 2;                     // probes of a chunk that take the same copy of the queries
constexpr int COPIES = 1;                    // copies of the queries
constexpr int TILES = 1;                     // sixteens of rows in shared memory
constexpr int STEPS = 8;                     // products along a row
constexpr int STEP = 128;                    // words of a left factor: four for each lane
constexpr int PART = 1024;                   // words of the rows, or of their rest
constexpr int PAGES = 3;                     // pages that a chunk lies in at most

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

// A lane's part of a left factor.
struct alignas(16) Four {
    unsigned at[4];
};

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

// Two numbers as what the factors' type holds of them and the rest.
inline void split_pair(float low, float high, unsigned& whole, unsigned& rest) {
    whole = pack<Factor>(low, high);
    low -= to_float(Factor{static_cast<unsigned short>(whole)});
    high -= to_float(Factor{static_cast<unsigned short>(whole >> 16)});
    rest = pack<Factor>(low, high);
}

// The first element of pair i of a lane's part of a key.
inline int first_element(int i, int across) { return (i / (EACH / 2) * 4 + across) * EACH + i % (EACH / 2) * 2; }

// The angles of two neighbouring elements: one load.
struct alignas(16) Angles {
    float2 at[2];
};

// Turns two neighbouring elements of a key, and those HALF further, by their angles. What the factors' type holds of them
// stays in place; the rest comes beside it.
inline void turn_pairs(unsigned& low, unsigned& high, unsigned& low_rest, unsigned& high_rest, const Angles& angles) {
    float x[2], y[2];
    for (int e = 0; e < 2; ++e) {
        x[e] = to_float(Factor{static_cast<unsigned short>(low >> 16 * e)});
        y[e] = to_float(Factor{static_cast<unsigned short>(high >> 16 * e)});
        rotate(x[e], y[e], angles.at[e]);
    }
    split_pair(x[0], x[1], low, low_rest);
    split_pair(y[0], y[1], high, high_rest);
}

// Chunks of the list, and the first token of each: what the stage before kept, ascending, each cut into SPLIT. A kept
// list is KEPT entries and how many of them there are.
inline int chunk_count(const int* kept) { return kept[KEPT] * SPLIT; }

inline int chunk_start(const int* kept, int chunk) { return kept[chunk / SPLIT] + chunk % SPLIT * CHUNK; }

// The query block of the stage before that a block lies in; blocks are counted from the end of the call.
inline int parent_block(int block, int rows) {
    const int blocks = (rows + QUERY_BLOCK - 1) / QUERY_BLOCK;
    const int parents = (rows + PARENT_QUERY_BLOCK - 1) / PARENT_QUERY_BLOCK;
    return (block + parents * BLOCK_RATIO - blocks) / BLOCK_RATIO;
}

KERNEL(THREADS) ihip_paper5k_s1_scan_chunk_indexed_c32_k32768_d128_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,
    const unsigned* __restrict__ page_table, const float2* __restrict__ rope_table,
    const int* parents, unsigned* scores, int score_stride) {
    SHARED_DYNAMIC(unsigned, factors);  // [TEAMS][COPIES][2][TILES][STEPS][32][4]: queries, and their rest
    SHARED(unsigned, warp_pages, WARPS * CHUNKS * PAGES);
    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int block = blockIdx.z, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int first_head = blockIdx.y * TEAMS, kv_head = first_head / GROUP, head = first_head + warp % TEAMS;
    const int first = block * QUERY_BLOCK;
    if (first >= rows) return;
    // The one causal test of the scan is on a chunk's left edge, against the block's first query.
    const int limit = start + first - SCAN_WINDOW, last = start + rows - 1;
    const int queries_here = min(QUERY_BLOCK, rows - first);
    const int live_rows = (queries_here + QUERY_STRIDE - 1) / QUERY_STRIDE;
    const int* const kept = parents + parent_block(block, rows) * (KEPT + 1);
    const int chunks = chunk_count(kept);

    // A row is the mean of QUERY_STRIDE neighbours; those beyond the call are left out of it. Elements come in the order
    // in which lanes load them from a key, to which a product is indifferent.
    for (int item = thread; item < TEAMS * TILES * 16 * HALF / 2; item += THREADS) {
        const int element = item % (HALF / 2) * 2, slot = item / (HALF / 2) % (TILES * 16);
        const int team = item / (HALF / 2 * TILES * 16);
        const int row = slot, own_head = first_head + team;
        const int neighbours = min(QUERY_STRIDE, queries_here - row * QUERY_STRIDE);
        float x[2] = {}, y[2] = {};
        for (int neighbour = 0; neighbour < neighbours; ++neighbour) {
            const unsigned long long at = first_row + first + row * QUERY_STRIDE + neighbour;
            const Activation* const query = &qkv[at * QKV_ROW + own_head * HEAD_DIM + element];
            for (int e = 0; e < 2; ++e) {
                x[e] += to_float(query[e]);
                y[e] += to_float(query[HALF + e]);
            }
        }
        const float scale = neighbours > 0 ? QUERY_SCALE / static_cast<float>(neighbours) : 0.0f;
        for (int copy = 0; copy < COPIES; ++copy) {
            float turned_x[2], turned_y[2];
            for (int e = 0; e < 2; ++e) {
                turned_x[e] = x[e] * scale;
                turned_y[e] = y[e] * scale;
                const int position = min(start + first + row * QUERY_STRIDE, chunks + SCAN_WINDOW);
                rotate(turned_x[e], turned_y[e], rope_table[position * HALF + element + e]);
            }
            for (int half = 0; half < 2; ++half) {
                const float* const turned = half == 0 ? turned_x : turned_y;
                const int at = element + half * HALF, load = at / EACH, pair = load / 4 * (EACH / 2) + at % EACH / 2;
                const int to = ((team * COPIES + copy) * 2 * TILES + slot / 16) * STEPS * STEP + pair / 2 * STEP +
                               (slot % 8 * 4 + load % 4) * 4 + pair % 2 * 2 + slot % 16 / 8;
                split_pair(turned[0], turned[1], factors[to], factors[to + PART]);
            }
        }
    }
    sync_block();

    const int across = lane % 4, down = lane / 4;
    const unsigned* const own_factors = factors + warp % TEAMS * COPIES * 2 * PART + lane * 4;
    const int first_chunk = (blockIdx.x * (WARPS / TEAMS) + warp / TEAMS) * CHUNKS;
    for (int base = first_chunk; base < chunks; base += gridDim.x * (WARPS / TEAMS) * CHUNKS) {
        // The list is ascending: where a warp's first chunk lies beyond the limit, so does every later one.
        if (chunk_start(kept, base) > limit) break;
        unsigned* const pages = warp_pages + warp * CHUNKS * PAGES;
        for (int item = lane; item < CHUNKS * PAGES; item += 32) {
            const int chunk = min(base + item / PAGES, chunks - 1);
            pages[item] = page_table[min(chunk_start(kept, chunk) / PAGE + item % PAGES, last / PAGE)];
        }
        sync_warp();
        // A lane loads parts of the probes of chunk `down` of each set.
        int left[SETS], right[SETS], pages_at[SETS];
        float best[SETS];
        for (int set = 0; set < SETS; ++set) {
            const int chunk = base + set * 8 + down;
            left[set] = chunk_start(kept, min(chunk, chunks - 1));
            right[set] = chunk < chunks ? left[set] + CHUNK : left[set];
            pages_at[set] = (set * 8 + down) * PAGES - left[set] / PAGE;
            best[set] = LOWEST;
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
            // The middle token of each half stands for it. What is loaded for an inactive chunk is ignored.
            Probe probe[SETS][2];
#pragma unroll
            for (int set = 0; set < SETS; ++set) {
                const bool active = left[set] < right[set] && left[set] <= limit;
                const int middle = (left[set] + right[set]) / 2;
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int token = side == 0 ? (left[set] + middle) / 2 : (middle + right[set]) / 2;
                    const unsigned page = pages[pages_at[set] + (active ? token : left[set]) / PAGE];
                    const unsigned long long row = (page * KV_HEADS + kv_head) * PAGE + (active ? token % PAGE : 0);
                    probe[set][side] = load_probe(keys, row, across);
                }
            }
            // A key's position is the index of its chunk in the list.
            unsigned rest[SETS][2][2 * STEPS];
            for (int set = 0; set < SETS; ++set) {
                const float2* const angles = &rope_table[min(base + set * 8 + down, chunks) * HALF];
                for (int pair = 0; pair < STEPS; ++pair) {
                    const Angles two = *reinterpret_cast<const Angles*>(&angles[first_element(pair, across)]);
                    for (int side = 0; side < 2; ++side) {
                        unsigned(&key)[2 * STEPS] = probe[set][side].at, (&over)[2 * STEPS] = rest[set][side];
                        turn_pairs(key[pair], key[pair + STEPS], over[pair], over[pair + STEPS], two);
                    }
                }
            }
            float score[SETS][2];
            for (int set = 0; set < SETS; ++set) score[set][0] = score[set][1] = LOWEST;
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int copy = 0; copy < COPIES; ++copy) {
                    float product[SIDES][SETS][4] = {};
                    for (int part = 0; part < 2; ++part)
                        for (int at = 0; at < STEPS; ++at) {
                            const Four factor = *reinterpret_cast<const Four*>(
                                &own_factors[(copy * 2 + part) * PART + (tile * STEPS + at) * STEP]);
                            for (int side = 0; side < SIDES; ++side)
                                for (int set = 0; set < SETS; ++set) {
                                    const unsigned* const key = &probe[set][copy + side].at[2 * at];
                                    mma_16x8x16<Factor>(product[side][set], factor.at, {key[0], key[1]});
                                    const unsigned* const over = &rest[set][copy + side][2 * at];
                                    if (part == 0) mma_16x8x16<Factor>(product[side][set], factor.at, {over[0], over[1]});
                                }
                        }
                    // A lane has the columns 2 * across and 2 * across + 1 of two rows, and goes on with one of them.
                    const int row = tile * 16 + down;
                    const bool one = row < live_rows, other = row + 8 < live_rows;
                    for (int side = 0; side < SIDES; ++side)
                        for (int set = 0; set < SETS; ++set) {
                            const float(&of)[4] = product[side][set];
                            const float even = max(one ? of[0] : LOWEST, other ? of[2] : LOWEST);
                            const float odd = max(one ? of[1] : LOWEST, other ? of[3] : LOWEST);
                            const float mine = max(down % 2 == 0 ? even : odd, shuffle_xor(down % 2 == 0 ? odd : even, 4));
                            score[set][copy + side] = max(score[set][copy + side], mine);
                        }
                }
            for (int set = 0; set < SETS; ++set)
                for (int side = 0; side < 2; ++side) {
                    score[set][side] = max(score[set][side], shuffle_xor(score[set][side], 8));
                    score[set][side] = max(score[set][side], shuffle_xor(score[set][side], 16));
                    // Column `down` is in the lanes across it.
                    score[set][side] = shuffle(score[set][side], down % 2 * 4 + down / 2);
                }
            // A tie goes right. The score is the best probe of all halvings, not the one the descent ends at.
            for (int set = 0; set < SETS; ++set) {
                if (!(left[set] < right[set] && left[set] <= limit)) continue;
                const int middle = (left[set] + right[set]) / 2;
                if (score[set][0] > score[set][1]) {
                    right[set] = middle;
                } else {
                    left[set] = middle;
                }
                best[set] = max(best[set], max(score[set][0], score[set][1]));
            }
        }
        for (int set = 0; set < SETS; ++set)
            if (across == 0 && best[set] > LOWEST)
                atomic_max(&scores[static_cast<unsigned long long>(block) * score_stride + base + set * 8 + down], ordered(max(best[set], NEVER)));
        sync_warp();  // the pages have been read
    }
}
