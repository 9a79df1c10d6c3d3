// Prefill of a dense layer: causal attention over every key, rotated before it was cached.
// A block of threads takes TILE_QUERIES queries of TILE_HEADS heads, a warp 16 of these rows a band.

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
constexpr int QUERY_BLOCK = 128;            // queries of a tile
constexpr int TILE_QUERIES = 128;           // queries of a tile
constexpr int TILE_HEADS = 1;               // heads of a group in a tile: they share the keys
constexpr int TILES = 1;                    // tiles of a query block
constexpr int TILE_KEYS = 64;               // keys of a tile
constexpr int BANDS = 2;                    // bands of 16 rows of a warp: a fragment of keys serves them all
constexpr int TILE_ROWS = 128;              // rows of a tile, some of which may stay empty
constexpr int THREADS = 128;                // threads of a block
constexpr int PIECES = 8;                   // 16-byte pieces of a row
constexpr int STEPS = 4;                    // products along a row
constexpr int NOWHERE = 0x3fffffff;         // token of an empty slot: after every query
constexpr float QUERY_SCALE = 0.18033688f;  // factor of every query, times log2(e)
constexpr float LOWEST = -3.4028235e38f;    // below every score

// The row of a token in the cache: [physical page][kv_head][page token].
inline unsigned cache_row(const unsigned* page_table, int token, int kv_head) {
    return (page_table[token / PAGE] * KV_HEADS + kv_head) * PAGE + token % PAGE;
}

using Factor = Cached;  // what tensor cores multiply

// Eight neighbouring elements of a row: sixteen bytes.
struct alignas(16) Piece {
    Factor at[8];
};

// Where a piece of 16 bytes of a row lies in shared memory: the same pieces of neighbouring rows are in other banks.
inline int piece_at(int row, int piece) { return row * HEAD_DIM + (piece ^ (row & min(7, (PIECES & -PIECES) - 1))) * 8; }

KERNEL(THREADS) ihip_quest_attend_all_d64_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,
    const Cached* __restrict__ values, const unsigned* __restrict__ page_table,
    Activation* out) {
    SHARED_DYNAMIC(Factor, query_tile);   // [TILE_ROWS][HEAD_DIM]
    Factor* const value_tiles = query_tile + TILE_ROWS * HEAD_DIM;        // two of [TILE_KEYS][HEAD_DIM]
    Factor* const key_tiles = value_tiles + 2 * TILE_KEYS * HEAD_DIM;     // two
    SHARED(int, slot_tokens, 3 * TILE_KEYS);   // of the tile at hand and of the next two
    SHARED(unsigned, slot_rows, 3 * TILE_KEYS);

    const int start = step[STEP_START], rows = step[STEP_ROWS], first_row = step[STEP_FIRST_ROW];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, across = lane % 4, down = lane / 4;
    // Tiles with many keys come last in a call: they are started first.
    const int tile_of_call = gridDim.x - 1 - blockIdx.x, block = tile_of_call / TILES;
    const int first = block * QUERY_BLOCK + tile_of_call % TILES * TILE_QUERIES;
    const int first_head = blockIdx.y * TILE_HEADS, kv_head = first_head / GROUP;
    if (first >= rows) return;
    const int queries_here = min(min(TILE_QUERIES, block * QUERY_BLOCK + QUERY_BLOCK - first), rows - first);
    const int tile_first = start + first, last = tile_first + queries_here - 1;


    // Row i of the tile is query i % TILE_QUERIES of head i / TILE_QUERIES.
    for (int item = thread; item < TILE_ROWS * PIECES / 2; item += THREADS) {
        const int row = item / (PIECES / 2), piece = item % (PIECES / 2), query = row % TILE_QUERIES;
        const bool there = row < TILE_HEADS * TILE_QUERIES && query < queries_here;
        Piece pieces[2];
        for (int e = 0; e < 8; ++e) {
            float x = 0.0f, y = 0.0f;
            if (there) {
                const unsigned long long from = static_cast<unsigned long long>(first_row + first + query) * QKV_ROW;
                const int element = piece * 8 + e, of_head = (first_head + row / TILE_QUERIES) * HEAD_DIM + element;
                x = to_float(qkv[from + of_head]) * QUERY_SCALE;
                y = to_float(qkv[from + of_head + HALF]) * QUERY_SCALE;
            }
            pieces[0].at[e] = from_float<Factor>(x);
            pieces[1].at[e] = from_float<Factor>(y);
        }
        const int low = piece_at(row, piece), high = piece_at(row, piece + PIECES / 2);
        *reinterpret_cast<Piece*>(&query_tile[low]) = pieces[0];
        *reinterpret_cast<Piece*>(&query_tile[high]) = pieces[1];
    }
    // A lane has ROWS rows of its warp's, 8 apart: two of each band.
    constexpr int ROWS = 2 * BANDS;
    int own_position[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp * (BANDS * 16) + down + 8 * r, query = row % TILE_QUERIES;
        own_position[r] = row < TILE_HEADS * TILE_QUERIES && query < queries_here ? tile_first + query : -1;
    }

    const int tiles = last / TILE_KEYS + 1;

    // Finds a thread's slot of a tile; what it loads is not waited for before it is stored.
    int next_token = NOWHERE;
    unsigned next_row = 0;
    const auto find = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        int token = NOWHERE;
        const int at = tile_index * TILE_KEYS + thread;
        if (at <= last) token = at;
        next_token = token;
        next_row = cache_row(page_table, token == NOWHERE ? 0 : token, kv_head);
    };
    const auto store = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        const int slot = tile_index % 3 * TILE_KEYS + thread;
        slot_tokens[slot] = next_token;
        slot_rows[slot] = next_row;
    };

    // A thread copies the same piece of every so many keys.
    const int own_key = thread / PIECES, own_piece = thread % PIECES;
    const auto copy = [&](Factor* to, const Cached* from, int tile_index) {
        if (tile_index < tiles)
#pragma unroll 2
            for (int key = own_key; key < TILE_KEYS; key += THREADS / PIECES) {
                const int slot = tile_index % 3 * TILE_KEYS + key;
                const unsigned long long row = static_cast<unsigned long long>(slot_rows[slot]) * HEAD_DIM;
                copy_async_16(&to[piece_at(key, own_piece)], &from[row + own_piece * 8], slot_tokens[slot] != NOWHERE);
            }
        copy_async_commit();
    };
    for (int tile_index = 0; tile_index < 2; ++tile_index) {
        find(tile_index);
        store(tile_index);
    }
    sync_block();
    copy(key_tiles, keys, 0);
    copy(value_tiles, values, 0);

    // Where a lane finds its row of the first fragment of a tile. That of the i-th along a row lies at the exclusive or
    // with i * 16, that of other rows multiples of 16 rows behind it.
    const int query_at = piece_at(warp * (BANDS * 16) + lane % 16, lane / 16);
    const int key_at = piece_at(lane % 8 + lane / 16 * 8, lane / 8 % 2), value_at = piece_at(lane % 16, lane / 16);

    float output[BANDS][HEAD_DIM / 8][4] = {}, total[ROWS] = {}, largest[ROWS];
    for (int r = 0; r < ROWS; ++r) largest[r] = LOWEST;
    for (int tile_index = 0; tile_index < tiles; ++tile_index) {
        const int slots = tile_index % 3 * TILE_KEYS;
        const int current = tile_index % 2 * TILE_KEYS * HEAD_DIM, other = TILE_KEYS * HEAD_DIM - current;
        const Factor *const key_tile = key_tiles + current, *const value_tile = value_tiles + current;
        copy_async_wait<0>();
        sync_block();  // the tile is there, and the one before has been read
        copy(key_tiles + other, keys, tile_index + 1);
        copy(value_tiles + other, values, tile_index + 1);
        find(tile_index + 2);
        float score[BANDS][TILE_KEYS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            unsigned query[BANDS][4];
            for (int band = 0; band < BANDS; ++band) {
                const int at = band * 16 * HEAD_DIM + (query_at ^ i * 16);
                load_matrix_x4(query[band], &query_tile[at]);
            }
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 16; ++n) {
                const int at = n * 16 * HEAD_DIM + (key_at ^ i * 16);
                unsigned key[4];
                load_matrix_x4(key, &key_tile[at]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(score[band][2 * n], query[band], {key[0], key[1]});
                    mma_16x8x16<Factor>(score[band][2 * n + 1], query[band], {key[2], key[3]});
                }
            }
        }
        const bool whole = tile_index * TILE_KEYS + TILE_KEYS - 1 <= tile_first;
        if (!whole)
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 2; ++e) {
                    const int token = slot_tokens[slots + n * 8 + across * 2 + e];
                    for (int r = 0; r < ROWS; ++r) {
                        const int distance = own_position[r] - token;
                        if (!(distance >= 0)) score[r / 2][n][r % 2 * 2 + e] = LOWEST;
                    }
                }
        float top[ROWS];
        bool rises = false;
        for (int r = 0; r < ROWS; ++r) {
            top[r] = largest[r];
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 2; ++e) top[r] = max(top[r], score[r / 2][n][r % 2 * 2 + e]);
            top[r] = max(top[r], shuffle_xor(top[r], 1));
            top[r] = max(top[r], shuffle_xor(top[r], 2));
            rises = rises || top[r] > largest[r];
        }
        // Weights of before are scaled to the new maximum, which soon stays what it is.
        if (ballot(rises) != 0)
            for (int r = 0; r < ROWS; ++r) {
                const float scale = exp2_fast(largest[r] - top[r]);
                largest[r] = top[r];
                total[r] *= scale;
                for (int n = 0; n < HEAD_DIM / 8; ++n)
                    for (int e = 0; e < 2; ++e) output[r / 2][n][r % 2 * 2 + e] *= scale;
            }
        // A row that has seen no key yet: what is below every score weighs nothing.
        for (int r = 0; r < ROWS; ++r) top[r] = top[r] > LOWEST ? top[r] : 0.0f;
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
            // Scores are where the product takes its left factor from.
            unsigned weight[BANDS][4];
            for (int band = 0; band < BANDS; ++band)
                for (int part = 0; part < 4; ++part) {
                    const int r = band * 2 + part % 2;
                    float exact[2];
                    for (int e = 0; e < 2; ++e) {
                        exact[e] = exp2_fast(score[band][2 * k + part / 2][part % 2 * 2 + e] - top[r]);
                        total[r] += exact[e];
                    }
                    weight[band][part] = pack<Factor>(exact[0], exact[1]);
                }
#pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                unsigned value[4];
                load_matrix_x4_transposed(value, &value_tile[k * 16 * HEAD_DIM + (value_at ^ i * 16)]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(output[band][2 * i], weight[band], {value[0], value[1]});
                    mma_16x8x16<Factor>(output[band][2 * i + 1], weight[band], {value[2], value[3]});
                }
            }
        }
        store(tile_index + 2);
    }
    for (int r = 0; r < ROWS; ++r) {
        total[r] += shuffle_xor(total[r], 1);
        total[r] += shuffle_xor(total[r], 2);
        if (own_position[r] < 0) continue;
        const float factor = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;  // a row without a visible key is zero
        const int head = first_head + (warp * (BANDS * 16) + down + 8 * r) / TILE_QUERIES;
        const unsigned long long row = first_row + own_position[r] - start;
        Activation* const to = &out[(row * QUERY_HEADS + head) * HEAD_DIM + across * 2];
        for (int n = 0; n < HEAD_DIM / 8; ++n)
            for (int e = 0; e < 2; ++e) to[n * 8 + e] = from_float<Activation>(output[r / 2][n][r % 2 * 2 + e] * factor);
    }
}
