// What the host's compiler sees in front of a kernel's text: CUDA's built-in names that kernels use as they are,
// and behind `namespace emulator` the calls that the host bodies of the prelude make. Laid out as in thread.rs.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __constant__
#define __forceinline__ inline

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

#define EMULATOR_VECTORS(element, name)                                                     \
    struct alignas(2 * sizeof(element)) name##2 { element x, y; };                          \
    struct alignas(sizeof(element) < 8 ? 4 * sizeof(element) : 16) name##4 { element x, y, z, w; }; \
    inline name##2 make_##name##2(element x, element y) { return {x, y}; }                  \
    inline name##4 make_##name##4(element x, element y, element z, element w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)
EMULATOR_VECTORS(double, double)

#define EMULATOR_MIN_MAX(result, left, right)                                                          \
    inline result min(left a, right b) { return static_cast<result>(a) < static_cast<result>(b) ? a : b; } \
    inline result max(left a, right b) { return static_cast<result>(a) > static_cast<result>(b) ? a : b; }
EMULATOR_MIN_MAX(int, int, int)
EMULATOR_MIN_MAX(unsigned, unsigned, unsigned)
EMULATOR_MIN_MAX(unsigned, int, unsigned)
EMULATOR_MIN_MAX(unsigned, unsigned, int)
EMULATOR_MIN_MAX(long, long, long)
EMULATOR_MIN_MAX(long long, long long, long long)
EMULATOR_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMULATOR_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

namespace emulator {

struct Thread;

struct Calls {
    void (*sync_block)(Thread*);
    void (*sync_warp)(Thread*);
    uint64_t (*exchange)(Thread*, uint64_t value, unsigned lane);
    unsigned (*ballot)(Thread*, bool predicate);
    void* (*shared)(Thread*, const void* key, size_t bytes);
    void* (*shared_dynamic)(Thread*);
    void (*copy_async)(Thread*, void* shared, const void* global, bool valid);
    void (*copy_async_commit)(Thread*);
    void (*copy_async_wait)(Thread*, unsigned pending);
    void (*load_matrix)(Thread*, unsigned* r, const void* shared_row, bool transposed);
    void (*mma)(Thread*, float* d, const unsigned* a, const unsigned* b, bool is_bf16);
};

struct Thread {
    const Calls* calls;
    uint3 thread, block;
    dim3 threads, grid;
};

// A thread's record lies at the upper end of its stack, so that the stack pointer alone finds it, whichever fibre runs.
// Records are shifted by the stack's number: at equal offsets into their pages they would fight for a few cache lines.
constexpr uintptr_t stack_bytes = 1 << 16, record_bytes = 256, shifts = 8;

inline Thread* current() {
    const uintptr_t top = (reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) | (stack_bytes - 1)) + 1;
    return reinterpret_cast<Thread*>(top - record_bytes * (1 + top / stack_bytes % shifts));
}

inline void sync_block() { current()->calls->sync_block(current()); }
inline void sync_warp() { current()->calls->sync_warp(current()); }
inline unsigned ballot(bool predicate) { return current()->calls->ballot(current(), predicate); }

template <typename T>
inline T exchange(T value, int lane) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles values of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = current()->calls->exchange(current(), bits, static_cast<unsigned>(lane) % 32);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline void* shared(const void* key, size_t bytes) { return current()->calls->shared(current(), key, bytes); }
inline void* shared_dynamic() { return current()->calls->shared_dynamic(current()); }
inline void copy_async(void* shared, const void* global, bool valid) {
    current()->calls->copy_async(current(), shared, global, valid);
}
inline void copy_async_commit() { current()->calls->copy_async_commit(current()); }
inline void copy_async_wait(int pending) { current()->calls->copy_async_wait(current(), static_cast<unsigned>(pending)); }
inline void load_matrix(unsigned (&r)[4], const void* row, bool transposed) {
    current()->calls->load_matrix(current(), r, row, transposed);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    current()->calls->mma(current(), d, a, b, true);
}
inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    current()->calls->mma(current(), d, a, b, false);
}

// Blocks may run on several threads of the host.
inline unsigned atomic_add(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned atomic_max(unsigned* address, unsigned value) {
    unsigned seen = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (seen < value &&
           !__atomic_compare_exchange_n(address, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return seen;
}
inline void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <typename To, typename From>
inline To reinterpret(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

inline uint16_t bf16_of_float(float value) {
    const uint32_t bits = reinterpret<uint32_t>(value);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float float_of_f16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return reinterpret<float>(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return reinterpret<float>(sign | (exponent + 112) << 23 | fraction << 13);
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return reinterpret<float>(sign | reinterpret<uint32_t>(magnitude));
}

inline uint16_t f16_of_float(float value) {
    const uint32_t bits = reinterpret<uint32_t>(value), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Below the smallest normal: adding 0.5, whose last bit is worth 2^-24, leaves the rounding to the addition.
        const float shifted = reinterpret<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (reinterpret<uint32_t>(shifted) - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline float exp2_flushed(float value) {
    const float result = exp2f(value);
    return result < 0x1p-126f ? 0.0f : result;
}

// How the emulator enters a kernel: arguments by address, their kinds as the text declares them.
template <typename T> constexpr char kind = '?';
template <typename T> constexpr char kind<T*> = 'p';
template <> constexpr char kind<int> = 'i';
template <> constexpr char kind<unsigned> = 'u';
template <> constexpr char kind<float> = 'f';

template <size_t... indices> struct Indices {};
template <size_t count, size_t... indices> struct Count : Count<count - 1, count - 1, indices...> {};
template <size_t... indices> struct Count<0, indices...> { using All = Indices<indices...>; };

template <typename... Arguments, size_t... indices>
inline void enter(void (*kernel)(Arguments...), void** arguments, Indices<indices...>) {
    kernel(*static_cast<Arguments*>(arguments[indices])...);
}

template <typename... Arguments>
inline void enter(void (*kernel)(Arguments...), void** arguments) {
    enter(kernel, arguments, typename Count<sizeof...(Arguments)>::All{});
}

template <typename... Arguments>
inline const char* signature(void (*)(Arguments...)) {
    static const char kinds[] = {kind<Arguments>..., '\0'};
    return kinds;
}

}  // namespace emulator

#define threadIdx (emulator::current()->thread)
#define blockIdx (emulator::current()->block)
#define blockDim (emulator::current()->threads)
#define gridDim (emulator::current()->grid)

#define EMULATOR_ENTRY(kernel)                                                                     \
    extern "C" void kernel##__enter(void** arguments) { emulator::enter(kernel, arguments); }      \
    extern "C" const char* kernel##__signature() { return emulator::signature(kernel); }
