// Stage 2: keeps the 256 best chunks of 16 tokens of every query block, the lower position first in a tie, in
// ascending order. One block of threads a query block; it leaves the scores at zero for their next use.

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

constexpr int SINK = 256;               // first tokens, which every query sees
constexpr int WINDOW = 1024;            // most recent tokens, which every query sees
constexpr int CHUNK = 16;               // tokens of a chunk
constexpr int QUERY_BLOCK = 64;         // queries that share a ranking
constexpr int KEPT = 512;               // chunks that the stage before keeps
constexpr int SPLIT = 2;                // chunks that each of them is cut into
constexpr int BLOCK_RATIO = 1;          // query blocks of this stage in one of the stage before
constexpr int PARENT_QUERY_BLOCK = 64;  // queries of a block of the stage before
constexpr int KEEP = 256;               // chunks that stay
constexpr int THREADS = 1024;           // threads of a block
constexpr int WARPS = 32;               // warps of a block
constexpr int BATCH = 2;                // loads of a thread under way at a time while the list is written
constexpr int BLOCK = 16;               // tokens of a block of the final list

// -32000 as an ordered integer: the score of a chunk that no query probed. The buffer has 0 there.
constexpr unsigned NEVER = ~0xc6fa0000u;

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

KERNEL(THREADS) ihip_paper5k_s2_select_c16_k4096(
    const int* step, const int* parents, unsigned* scores, int* blocks, int* counts, int score_stride) {
    SHARED(unsigned, histogram, 256);
    SHARED(unsigned, found, 3);           // the digit at which the cut falls, what is left to take there, and how many have it
    SHARED(unsigned, warp_ones, WARPS);   // bits that are one in all scores of a warp's chunks
    SHARED(unsigned, warp_zeros, WARPS);  // and those that are zero
    SHARED(unsigned, warp_scored, WARPS); // how many of its chunks have a score at all
    SHARED(unsigned, warp_above, WARPS);  // how many are above the threshold
    SHARED(unsigned, warp_ties, WARPS);   // and how many at it

    const int rows = step[STEP_ROWS];
    const int block = blockIdx.x, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if (block * QUERY_BLOCK >= rows) return;
    unsigned* const score = scores + static_cast<unsigned long long>(block) * score_stride;
    const int* const kept = parents + parent_block(block, rows) * (KEPT + 1);
    const int chunks = chunk_count(kept);
    const int keep = min(KEEP, chunks);

    // Neighbouring chunks are a warp's, so that warps in order have the list in order; its lanes take them side by side.
    const int each = (chunks + THREADS - 1) / THREADS * 32, first = warp * each, end = min(chunks, first + each);

    unsigned ones = ~0u, zeros = ~0u, scored = 0;
#pragma unroll 8
    for (int chunk = first + lane; chunk < end; chunk += 32) {
        const unsigned key = max(score[chunk], NEVER);
        if (key > NEVER) {
            ones &= key;
            zeros &= ~key;
            ++scored;
        }
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        ones &= shuffle_xor(ones, mask);
        zeros &= shuffle_xor(zeros, mask);
        scored += shuffle_xor(scored, mask);
    }
    if (lane == 0) {
        warp_ones[warp] = ones;
        warp_zeros[warp] = zeros;
        warp_scored[warp] = scored;
    }
    sync_block();
    ones = lane < WARPS ? warp_ones[lane] : ~0u;
    zeros = lane < WARPS ? warp_zeros[lane] : ~0u;
    scored = lane < WARPS ? warp_scored[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) {
        ones &= shuffle_xor(ones, mask);
        zeros &= shuffle_xor(zeros, mask);
        scored += shuffle_xor(scored, mask);
    }

    // The keep-th largest score, eight bits at a time from the first in which scores differ: of the chunks whose decided
    // bits are the threshold's, `ties` stay.
    unsigned threshold = NEVER, decided = ~0u, ties = keep - scored;
    if (scored >= keep) {
        int open = 32;
        while (open > 8 && ((ones | zeros) >> (open - 1) & 1) == 1) --open;
        decided = open < 32 ? ~0u << open : 0;
        threshold = ones & decided;
        ties = keep;
        unsigned alike = chunks;
        for (int shift = open - 8; alike > ties; shift = max(shift - 8, 0)) {
            if (thread < 256) histogram[thread] = 0;
            sync_block();
#pragma unroll 8
            for (int chunk = first + lane; chunk < end; chunk += 32) {
                const unsigned key = max(score[chunk], NEVER);
                if ((key & decided) == threshold) atomic_add(&histogram[key >> shift & 255], 1);
            }
            sync_block();
            // A warp counts from the top: lane i has digits 255 - 8 * i down to 248 - 8 * i.
            if (warp == 0) {
                unsigned own = 0;
                for (int i = 0; i < 8; ++i) own += histogram[255 - 8 * lane - i];
                unsigned through = own;
                for (int distance = 1; distance < 32; distance *= 2) {
                    const unsigned before = shuffle(through, max(lane - distance, 0));
                    if (lane >= distance) through += before;
                }
                unsigned above = through - own;
                if (above < ties && ties <= through) {
                    int digit = 255 - 8 * lane;
                    while (above + histogram[digit] < ties) above += histogram[digit--];
                    found[0] = digit;
                    found[1] = ties - above;
                    found[2] = histogram[digit];
                }
            }
            sync_block();
            threshold |= found[0] << shift;
            decided |= 255u << shift;
            ties = found[1];
            alike = shift > 0 ? found[2] : 0;
        }
    }

    // The list is ascending: each warp counts what it takes and learns what warps before it take. In a tie the lower
    // position comes first.
    unsigned above = 0, tied = 0;
#pragma unroll 8
    for (int chunk = first + lane; chunk < end; chunk += 32) {
        const unsigned key = max(score[chunk], NEVER) & decided;
        above += key > threshold;
        tied += key == threshold;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        above += shuffle_xor(above, mask);
        tied += shuffle_xor(tied, mask);
    }
    if (lane == 0) {
        warp_above[warp] = above;
        warp_ties[warp] = tied;
    }
    sync_block();
    unsigned above_before = lane < warp ? warp_above[lane] : 0, tied_before = lane < warp ? warp_ties[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) {
        above_before += shuffle_xor(above_before, mask);
        tied_before += shuffle_xor(tied_before, mask);
    }
    int* const list = blocks + block * KEEP;
    const unsigned lanes_before = (1u << lane) - 1;
    unsigned visible = 0;
    for (int batch = first; batch < end; batch += 32 * BATCH) {
        unsigned keys[BATCH];
        for (int i = 0; i < BATCH; ++i) {
            const int chunk = batch + i * 32 + lane;
            keys[i] = chunk < end ? max(score[chunk], NEVER) & decided : 0;
        }
        for (int i = 0; i < BATCH && batch + i * 32 < end; ++i) {
            const int chunk = batch + i * 32 + lane;
            const bool is_above = keys[i] > threshold, is_tied = chunk < end && keys[i] == threshold;
            const unsigned above_lanes = ballot(is_above), tied_lanes = ballot(is_tied);
            const unsigned tied_here = tied_before + __popc(tied_lanes & lanes_before);
            if (is_above || (is_tied && tied_here < ties)) {
                int entry = chunk_start(kept, chunk);
                entry = entry / BLOCK * BLOCK;
                list[above_before + __popc(above_lanes & lanes_before) + min(tied_here, ties)] = entry;
                if (entry < step[STEP_START] + block * QUERY_BLOCK + QUERY_BLOCK) ++visible;
            }
            above_before += __popc(above_lanes);
            tied_before += __popc(tied_lanes);
            if (chunk < end) score[chunk] = 0;
        }
    }
    for (int entry = keep + thread; entry < KEEP; entry += THREADS) list[entry] = -1;
    // Blocks that begin beyond the query block count for nothing, not even for positions.
    for (int mask = 16; mask > 0; mask /= 2) visible += shuffle_xor(visible, mask);
    if (lane == 0) warp_ones[warp] = visible;
    sync_block();
    visible = lane < WARPS ? warp_ones[lane] : 0;
    for (int mask = 16; mask > 0; mask /= 2) visible += shuffle_xor(visible, mask);
    if (thread == 0) counts[block] = visible;
}
