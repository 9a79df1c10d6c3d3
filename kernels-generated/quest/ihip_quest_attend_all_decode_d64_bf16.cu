// Decoding in a dense layer: causal attention of one query over one of SPLITS pieces of the keys.
// A block of threads takes the query heads of a group; the last one of them joins the splits.

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

#line 1 "Quest, dense"

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
constexpr int SPLITS = 42;                  // pieces of the keys
constexpr int HEADS = 3;                    // query heads of a block of threads: they share the keys
constexpr int TILE_KEYS = 16;               // keys of a warp's tile
constexpr int STAGES = 4;                   // tiles of a warp in shared memory
constexpr int THREADS = 128;                // threads of a block
constexpr int WARPS = 4;                    // warps of a block
constexpr int STEPS = 4;                    // products along a row
constexpr int QUADS = 48;                   // quads of output
constexpr int PARTS = 2;                    // threads that share the splits of a quad
constexpr int SUMS = 4;                     // sums of a head: one a warp at first, then one a part
constexpr int BATCH = 8;                    // splits that are joined at a time
constexpr float QUERY_SCALE = 0.18033688f;  // factor of every query, times log2(e)
constexpr float LOWEST = -3.4028235e38f;    // below every score

using Factor = Cached;  // what tensor cores multiply

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

constexpr int PIECES = 8;  // 16-byte pieces of a row

// Where a piece of 16 bytes of a row lies in shared memory: the same pieces of neighbouring rows are in other banks.
inline int piece_at(int row, int piece) { return row * HEAD_DIM + (piece ^ (row & min(7, (PIECES & -PIECES) - 1))) * 8; }

KERNEL(THREADS) ihip_quest_attend_all_decode_d64_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,
    const Cached* __restrict__ values, const unsigned* __restrict__ page_table, float* partials, float* partial_sums,
    unsigned* arrivals, Activation* out) {
    SHARED_DYNAMIC(Cached, tiles);  // [WARPS][STAGES][2][TILE_KEYS][HEAD_DIM]: keys and values of each warp
    SHARED(float, largest, SUMS * HEADS);
    SHARED(float, total, SUMS * HEADS);
    SHARED(unsigned, arrived, 1);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, split = blockIdx.x, kv_head = blockIdx.y;
    const int across = lane % 4, down = lane / 4;
    const int position = step[STEP_START], first_row = step[STEP_FIRST_ROW];
    Cached* const own_tiles = tiles + warp * STAGES * 2 * TILE_KEYS * HEAD_DIM;

    // A split is every SPLITS-th run of WARPS tiles, a warp's own tiles are WARPS apart.
    const int count = position / TILE_KEYS + 1, stride = SPLITS * WARPS;
    const int first = split * WARPS + warp;
    // Lane i has the row of the i-th key of the tile that is copied next.
    unsigned tile_row = 0;
    int tile_to_copy = first;
    const auto find_rows = [&] {
        if (lane < TILE_KEYS) tile_row = cache_row(page_table, min(tile_to_copy * TILE_KEYS + lane, position), kv_head);
    };
    const auto copy = [&](int stage) {
        Cached* const tile = own_tiles + stage * 2 * TILE_KEYS * HEAD_DIM;
        for (int i = 0; i < TILE_KEYS * PIECES / 32; ++i) {
            const int key = (i * 32 + lane) / PIECES, piece = lane % PIECES;
            const unsigned long long from = static_cast<unsigned long long>(shuffle(tile_row, key)) * HEAD_DIM + piece * 8;
            const bool valid = tile_to_copy < count;
            copy_async_16(&tile[piece_at(key, piece)], &keys[from], valid);
            copy_async_16(&tile[TILE_KEYS * HEAD_DIM + piece_at(key, piece)], &values[from], valid);
        }
        copy_async_commit();
        tile_to_copy += stride;
        find_rows();
    };
    find_rows();
    for (int stage = 0; stage < STAGES - 1; ++stage) copy(stage);

    // Rows 0 to 7 of the queries are rounded to the factors' type, rows 8 to 15 hold what rounding took from them.
    unsigned query[STEPS][4];
    for (int i = 0; i < STEPS; ++i)
        for (int half = 0; half < 2; ++half) {
            float whole[2] = {}, rest[2] = {};
            for (int e = 0; e < 2; ++e) {
                if (down >= HEADS) continue;
                const int element = i * 16 + half * 8 + across * 2 + e;
                const float x = QUERY_SCALE * to_float(qkv[static_cast<unsigned long long>(first_row) * QKV_ROW +
                                                          (kv_head * HEADS + down) * HEAD_DIM + element]);
                whole[e] = to_float(from_float<Factor>(x));
                rest[e] = x - whole[e];
            }
            query[i][half * 2] = pack<Factor>(whole[0], whole[1]);
            query[i][half * 2 + 1] = pack<Factor>(rest[0], rest[1]);
        }

    float output[HEAD_DIM / 8][4] = {};
    float warp_top = LOWEST, warp_sum = 0.0f;
    int stage = 0;
    for (int tile = first; tile < count; tile += stride) {
        copy((stage + STAGES - 1) % STAGES);
        copy_async_wait<STAGES - 1>();
        sync_warp();
        const Cached* const key_tile = own_tiles + stage * 2 * TILE_KEYS * HEAD_DIM;
        const Cached* const value_tile = key_tile + TILE_KEYS * HEAD_DIM;
        float score[2][4] = {};
        for (int i = 0; i < STEPS; ++i) {
            unsigned key[4];
            load_matrix_x4(key, &key_tile[piece_at(lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2)]);
            mma_16x8x16<Factor>(score[0], query[i], {key[0], key[1]});
            mma_16x8x16<Factor>(score[1], query[i], {key[2], key[3]});
        }
        float weight[2][2], most = warp_top;
        for (int n = 0; n < 2; ++n)
            for (int e = 0; e < 2; ++e) {
                weight[n][e] = score[n][e] + score[n][e + 2];
                if (tile * TILE_KEYS + n * 8 + across * 2 + e > position) weight[n][e] = LOWEST;
                most = max(most, weight[n][e]);
            }
        most = max(most, shuffle_xor(most, 1));
        most = max(most, shuffle_xor(most, 2));
        if (ballot(most > warp_top) != 0) {
            const float scale = exp2_fast(warp_top - most);
            warp_sum *= scale;
            for (int n = 0; n < HEAD_DIM / 8; ++n)
                for (int e = 0; e < 4; ++e) output[n][e] *= scale;
            warp_top = most;
        }
        unsigned factor[4];
        for (int n = 0; n < 2; ++n) {
            float whole[2], rest[2];
            for (int e = 0; e < 2; ++e) {
                const float x = exp2_fast(weight[n][e] - warp_top);
                warp_sum += x;
                whole[e] = to_float(from_float<Factor>(x));
                rest[e] = x - whole[e];
            }
            factor[2 * n] = pack<Factor>(whole[0], whole[1]);
            factor[2 * n + 1] = pack<Factor>(rest[0], rest[1]);
        }
        for (int i = 0; i < STEPS; ++i) {
            unsigned value[4];
            load_matrix_x4_transposed(value, &value_tile[piece_at(lane % 16, 2 * i + lane / 16)]);
            mma_16x8x16<Factor>(output[2 * i], factor, {value[0], value[1]});
            mma_16x8x16<Factor>(output[2 * i + 1], factor, {value[2], value[3]});
        }
        sync_warp();
        stage = (stage + 1) % STAGES;
    }
    copy_async_wait<0>();
    warp_sum += shuffle_xor(warp_sum, 1);
    warp_sum += shuffle_xor(warp_sum, 2);
    sync_block();
    // The warps of a block become one split.
    float* const shares = reinterpret_cast<float*>(tiles);  // [WARPS][HEADS][HEAD_DIM]
    if (down < HEADS) {
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            for (int e = 0; e < 2; ++e) {
                const int element = n * 8 + across * 2 + e;
                shares[(warp * HEADS + down) * HEAD_DIM + element] = output[n][e] + output[n][e + 2];
            }
        if (across == 0) {
            largest[warp * HEADS + down] = warp_top;
            total[warp * HEADS + down] = warp_sum;
        }
    }
    sync_block();
    const int quad = thread % QUADS, part = thread / QUADS;
    const int head = quad * 4 / HEAD_DIM, at = quad * 4 % HEAD_DIM;
    const unsigned long long row = kv_head * HEADS + head;
    if (part == 0) {
        float most = LOWEST, weights = 0.0f;
        Quad<float> both = {};
        for (int other = 0; other < WARPS; ++other) most = max(most, largest[other * HEADS + head]);
        for (int other = 0; other < WARPS; ++other) {
            const float factor = exp2_fast(largest[other * HEADS + head] - most);
            const Quad<float> share = load_quad(&shares[(other * QUADS + quad) * 4]);
            weights += total[other * HEADS + head] * factor;
            for (int e = 0; e < 4; ++e) both.at[e] += share.at[e] * factor;
        }
        store_quad(&partials[(row * SPLITS + split) * HEAD_DIM + at], both);
        if (at == 0) {
            partial_sums[(row * SPLITS + split) * 2] = most;
            partial_sums[(row * SPLITS + split) * 2 + 1] = weights;
        }
    }

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
