// Prefill: attention over the kept blocks, the sinks and the window, each key in exactly one of the three.
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

#line 1 "Paper3k, attend"

// What changes from step to step is read from memory, so that a captured graph stays valid.
enum StepWord { STEP_START = 0, STEP_ROWS = 1, STEP_T_MAX = 2, STEP_FIRST_ROW = 3 };

using Cached = bf16;  // element of the key-value cache
using Activation = float;

constexpr int QUERY_HEADS = 32;             // query heads
constexpr int KV_HEADS = 8;                 // key-value heads
constexpr int GROUP = 4;                    // query heads that share a key-value head
constexpr int HEAD_DIM = 128;               // elements of a head
constexpr int HALF = 64;                    // element j rotates with element j + HALF
constexpr int QKV_ROW = 6144;               // elements of a row of projections
constexpr int PAGE = 16;                    // tokens of a page of the cache
constexpr int SINK = 256;                   // first tokens, which every query sees
constexpr int WINDOW = 1024;                // most recent tokens, which every query sees
constexpr int QUERY_BLOCK = 64;             // queries that share a block list
constexpr int BLOCK = 8;                    // tokens of a block of the list
constexpr int KEEP = 256;                   // entries of a list; beyond its count they are not read
constexpr int TILE_QUERIES = 64;            // queries of a tile
constexpr int TILE_HEADS = 2;               // heads of a group in a tile: they share the keys
constexpr int TILES = 1;                    // tiles of a query block
constexpr int TILE_KEYS = 32;               // keys of a tile
constexpr int BANDS = 2;                    // bands of 16 rows of a warp: a fragment of keys serves them all
constexpr int TILE_ROWS = 128;              // rows of a tile, some of which may stay empty
constexpr int THREADS = 128;                // threads of a block
constexpr int PIECES = 16;                  // 16-byte pieces of a row
constexpr int STEPS = 8;                    // products along a row
constexpr int NOWHERE = 0x3fffffff;         // token of an empty slot: after every query
constexpr float QUERY_SCALE = 0.12751743f;  // factor of every query, times log2(e)
constexpr float LOWEST = -3.4028235e38f;    // below every score
constexpr int TURNS = 2;                    // pairs of pieces of a key tile that a thread turns

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

// Turns the pair (x, y) = (element j, element j + HALF) by an angle given as (cosine, sine).
inline void rotate(float& x, float& y, float2 angle) {
    const float turned = x * angle.x - y * angle.y;
    y = y * angle.x + x * angle.y;
    x = turned;
}

KERNEL(THREADS) ihip_paper3k_attend_streaming_k2048_d128_bf16(
    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,
    const Cached* __restrict__ values, const unsigned* __restrict__ page_table,
    const float2* __restrict__ rope_table, const int* blocks, const int* counts, Activation* out) {
    SHARED_DYNAMIC(Factor, query_tile);   // [TILE_ROWS][HEAD_DIM]
    Factor* const query_rests = query_tile + TILE_ROWS * HEAD_DIM;        // what rounding took from it
    Factor* const value_tile = query_rests + TILE_ROWS * HEAD_DIM;        // [TILE_KEYS][HEAD_DIM]
    Factor* const cached_tile = value_tile + TILE_KEYS * HEAD_DIM;        // keys as they were cached
    Factor* const key_tile = cached_tile + TILE_KEYS * HEAD_DIM;          // turned
    Factor* const key_rests = key_tile + TILE_KEYS * HEAD_DIM;            // what rounding took from them
    SHARED(int, slot_tokens, 3 * TILE_KEYS);   // of the tile at hand and of the next two
    SHARED(int, slot_positions, 3 * TILE_KEYS);
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
    const int first_position = start + block * QUERY_BLOCK;
    const int* const list = blocks + block * KEEP;
    const int count = counts[block];
    // Kept keys are packed to end one window before the block's first query, sinks right before them. Only
    // differences of positions matter, so all are counted from the first sink's: the table stays short.
    const int packed = first_position - WINDOW - SINK - count * BLOCK + 1, origin = max(0, packed);

    // Row i of the tile is query i % TILE_QUERIES of head i / TILE_QUERIES.
    for (int item = thread; item < TILE_ROWS * PIECES / 2; item += THREADS) {
        const int row = item / (PIECES / 2), piece = item % (PIECES / 2), query = row % TILE_QUERIES;
        const bool there = row < TILE_HEADS * TILE_QUERIES && query < queries_here;
        Piece pieces[2], rests[2];
        for (int e = 0; e < 8; ++e) {
            float x = 0.0f, y = 0.0f;
            if (there) {
                const unsigned long long from = static_cast<unsigned long long>(first_row + first + query) * QKV_ROW;
                const int element = piece * 8 + e, of_head = (first_head + row / TILE_QUERIES) * HEAD_DIM + element;
                x = to_float(qkv[from + of_head]) * QUERY_SCALE;
                y = to_float(qkv[from + of_head + HALF]) * QUERY_SCALE;
                rotate(x, y, rope_table[(tile_first + query - origin) * HALF + element]);
            }
            pieces[0].at[e] = from_float<Factor>(x);
            pieces[1].at[e] = from_float<Factor>(y);
            rests[0].at[e] = from_float<Factor>(x - to_float(pieces[0].at[e]));
            rests[1].at[e] = from_float<Factor>(y - to_float(pieces[1].at[e]));
        }
        const int low = piece_at(row, piece), high = piece_at(row, piece + PIECES / 2);
        *reinterpret_cast<Piece*>(&query_tile[low]) = pieces[0];
        *reinterpret_cast<Piece*>(&query_tile[high]) = pieces[1];
        *reinterpret_cast<Piece*>(&query_rests[low]) = rests[0];
        *reinterpret_cast<Piece*>(&query_rests[high]) = rests[1];
    }
    // A lane has ROWS rows of its warp's, 8 apart: two of each band.
    constexpr int ROWS = 2 * BANDS;
    int own_position[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        const int row = warp * (BANDS * 16) + down + 8 * r, query = row % TILE_QUERIES;
        own_position[r] = row < TILE_HEADS * TILE_QUERIES && query < queries_here ? tile_first + query : -1;
    }

    const int listed_tiles = (count * BLOCK + TILE_KEYS - 1) / TILE_KEYS;
    // A sink leaves its group for the window's where it is near.
    const int sinks = max(0, min(SINK, last - WINDOW + 1)), sink_tiles = (sinks + TILE_KEYS - 1) / TILE_KEYS;
    const int window_first = max(0, tile_first - WINDOW + 1);
    const int tiles = listed_tiles + sink_tiles + (last - window_first) / TILE_KEYS + 1;

    // The entry of the list that a thread's slot of a tile belongs to.
    const auto entry = [&](int tile_index) {
        const int slot = tile_index * TILE_KEYS + thread;
        return thread < TILE_KEYS && slot < count * BLOCK ? list[slot / BLOCK] : 0;
    };
    int upcoming = entry(0);

    // Finds a thread's slot of a tile; what it loads is not waited for before it is stored.
    int next_token = NOWHERE, next_position = 0;
    unsigned next_row = 0;
    const auto find = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        int token = NOWHERE, position = 0;
        if (tile_index < listed_tiles) {
            const int slot = tile_index * TILE_KEYS + thread;
            if (slot < count * BLOCK) token = upcoming + slot % BLOCK;
            if (token < SINK || token > last) token = NOWHERE;  // sinks are seen as sinks
            position = max(0, SINK + slot + packed) - origin;
        } else if (tile_index < listed_tiles + sink_tiles) {
            const int at = (tile_index - listed_tiles) * TILE_KEYS + thread;
            if (at < sinks) token = at;
            position = max(0, at + packed) - origin;
        } else {
            const int at = window_first + (tile_index - listed_tiles - sink_tiles) * TILE_KEYS + thread;
            if (at <= last) token = at;
            position = max(0, at - origin);
        }
        next_token = token;
        next_row = cache_row(page_table, token == NOWHERE ? 0 : token, kv_head);
        next_position = token == NOWHERE ? 0 : position;
    };
    const auto store = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        const int slot = tile_index % 3 * TILE_KEYS + thread;
        slot_tokens[slot] = next_token;
        slot_rows[slot] = next_row;
        slot_positions[slot] = next_position;
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
        upcoming = entry(tile_index + 1);
    }
    sync_block();
    copy(cached_tile, keys, 0);

    // Where a lane finds its row of the first fragment of a tile. That of the i-th along a row lies at the exclusive or
    // with i * 16, that of other rows multiples of 16 rows behind it.
    const int query_at = piece_at(warp * (BANDS * 16) + lane % 16, lane / 16);
    const int key_at = piece_at(lane % 8 + lane / 16 * 8, lane / 8 % 2), value_at = piece_at(lane % 16, lane / 16);

    float output[BANDS][HEAD_DIM / 8][4] = {}, total[ROWS] = {}, largest[ROWS];
    for (int r = 0; r < ROWS; ++r) largest[r] = LOWEST;
    for (int tile_index = 0; tile_index < tiles; ++tile_index) {
        const int slots = tile_index % 3 * TILE_KEYS;
        float2 angles[TURNS][8];
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = min(thread + turn * THREADS, TILE_KEYS * PIECES / 2 - 1);
            const int position = slot_positions[slots + item / (PIECES / 2)], element = item % (PIECES / 2) * 8;
            for (int e = 0; e < 8; ++e) angles[turn][e] = rope_table[position * HALF + element + e];
        }
        copy_async_wait<0>();
        sync_block();  // the tile's keys are there, and the tile before has been read
        copy(value_tile, values, tile_index);
        // Keys are turned to their positions, and split.
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = thread + turn * THREADS, key = item / (PIECES / 2), piece = item % (PIECES / 2);
            if (item >= TILE_KEYS * PIECES / 2) break;
            const int low = piece_at(key, piece), high = piece_at(key, piece + PIECES / 2);
            Piece turned[2], rests[2];
            turned[0] = *reinterpret_cast<const Piece*>(&cached_tile[low]);
            turned[1] = *reinterpret_cast<const Piece*>(&cached_tile[high]);
            for (int e = 0; e < 8; ++e) {
                float x = to_float(turned[0].at[e]), y = to_float(turned[1].at[e]);
                rotate(x, y, angles[turn][e]);
                turned[0].at[e] = from_float<Factor>(x);
                turned[1].at[e] = from_float<Factor>(y);
                rests[0].at[e] = from_float<Factor>(x - to_float(turned[0].at[e]));
                rests[1].at[e] = from_float<Factor>(y - to_float(turned[1].at[e]));
            }
            *reinterpret_cast<Piece*>(&key_tile[low]) = turned[0];
            *reinterpret_cast<Piece*>(&key_tile[high]) = turned[1];
            *reinterpret_cast<Piece*>(&key_rests[low]) = rests[0];
            *reinterpret_cast<Piece*>(&key_rests[high]) = rests[1];
        }
        sync_block();
        copy(cached_tile, keys, tile_index + 1);
        find(tile_index + 2);
        upcoming = entry(tile_index + 3);
        float score[BANDS][TILE_KEYS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            unsigned query[BANDS][4], query_rest[BANDS][4];
            for (int band = 0; band < BANDS; ++band) {
                const int at = band * 16 * HEAD_DIM + (query_at ^ i * 16);
                load_matrix_x4(query[band], &query_tile[at]);
                load_matrix_x4(query_rest[band], &query_rests[at]);
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
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(score[band][2 * n], query_rest[band], {key[0], key[1]});
                    mma_16x8x16<Factor>(score[band][2 * n + 1], query_rest[band], {key[2], key[3]});
                }
                load_matrix_x4(key, &key_rests[at]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(score[band][2 * n], query[band], {key[0], key[1]});
                    mma_16x8x16<Factor>(score[band][2 * n + 1], query[band], {key[2], key[3]});
                }
            }
        }
        const bool in_window = tile_index >= listed_tiles + sink_tiles;
        // Slots are ascending: the outer ones tell whether every row sees the whole tile.
        const int farthest = slot_tokens[slots], nearest = slot_tokens[slots + TILE_KEYS - 1];
        const bool whole = in_window ? farthest > last - WINDOW && nearest <= tile_first
                                     : farthest != NOWHERE && nearest <= tile_first - WINDOW;
        if (!whole)
            for (int n = 0; n < TILE_KEYS / 8; ++n)
                for (int e = 0; e < 2; ++e) {
                    const int token = slot_tokens[slots + n * 8 + across * 2 + e];
                    for (int r = 0; r < ROWS; ++r) {
                        const int distance = own_position[r] - token;
                        if (!(in_window ? distance >= 0 && distance < WINDOW : distance >= WINDOW)) score[r / 2][n][r % 2 * 2 + e] = LOWEST;
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
        copy_async_wait<1>();
        sync_block();  // the tile's values are there
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; ++k) {
            // Scores are where the product takes its left factor from.
            unsigned weight[BANDS][4], weight_rest[BANDS][4];
            for (int band = 0; band < BANDS; ++band)
                for (int part = 0; part < 4; ++part) {
                    const int r = band * 2 + part % 2;
                    float exact[2];
                    for (int e = 0; e < 2; ++e) {
                        exact[e] = exp2_fast(score[band][2 * k + part / 2][part % 2 * 2 + e] - top[r]);
                        total[r] += exact[e];
                    }
                    weight[band][part] = pack<Factor>(exact[0], exact[1]);
                    for (int e = 0; e < 2; ++e) exact[e] -= to_float(from_float<Factor>(exact[e]));
                    weight_rest[band][part] = pack<Factor>(exact[0], exact[1]);
                }
#pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                unsigned value[4];
                load_matrix_x4_transposed(value, &value_tile[k * 16 * HEAD_DIM + (value_at ^ i * 16)]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(output[band][2 * i], weight[band], {value[0], value[1]});
                    mma_16x8x16<Factor>(output[band][2 * i + 1], weight[band], {value[2], value[3]});
                }
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(output[band][2 * i], weight_rest[band], {value[0], value[1]});
                    mma_16x8x16<Factor>(output[band][2 * i + 1], weight_rest[band], {value[2], value[3]});
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
