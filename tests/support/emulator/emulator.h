// What the host's compiler sees in front of a kernel's text: CUDA's built-in names that kernels use as they are,
// and behind `namespace emulator` the calls that the host bodies of the prelude make. Laid out as in thread.rs.
// Every access of a kernel is reported as well: the compiler instruments them, and what it calls is here.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __constant__
#define __forceinline__ inline

// Everything small is part of the kernel itself, so that an address in the code says which line of the kernel it is.
#define inline inline __attribute__((always_inline))
// What a kernel calls, and what is no part of it: the return address is the kernel's, nothing in it is instrumented.
#define EMULATOR_CALLED __attribute__((noinline, visibility("hidden"), no_sanitize("thread"), no_sanitize("undefined")))
#define EMULATOR_CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

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

// Byte i of the result is that of the two words, `low` first, whose number is in bits 4i to 4i + 2 of `which`.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

namespace emulator {

struct Thread;

enum Access : unsigned { READ = 0, WRITE = 1, UPDATE = 2 };
enum Mistake : unsigned { MISALIGNED = 0, INDEX = 1, OVERFLOWN = 2, SHIFTED = 3, DIVIDED = 4 };

// `caller` is the address behind the call in the kernel's code.
struct Calls {
    void (*sync_block)(Thread*, uintptr_t caller);
    void (*sync_warp)(Thread*, uintptr_t caller);
    uint64_t (*exchange)(Thread*, uint64_t value, unsigned lane, uintptr_t caller);
    unsigned (*ballot)(Thread*, bool predicate, uintptr_t caller);
    void* (*shared)(Thread*, const void* key, size_t bytes, uintptr_t caller);
    void* (*shared_dynamic)(Thread*);
    void (*copy_async)(Thread*, void* shared, const void* global, bool valid, uintptr_t caller);
    void (*copy_async_commit)(Thread*);
    void (*copy_async_wait)(Thread*, unsigned pending);
    void (*load_matrix)(Thread*, unsigned* r, const void* shared_row, bool transposed, uintptr_t caller);
    void (*mma)(Thread*, float* d, const unsigned* a, const unsigned* b, bool is_bf16, uintptr_t caller);
    void (*access)(Thread*, const void* address, size_t bytes, Access access, uintptr_t caller);
    void (*mistake)(Thread*, Mistake mistake, uint64_t value, const void* site, uintptr_t caller);
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

EMULATOR_CALLED void sync_block() { current()->calls->sync_block(current(), EMULATOR_CALLER); }
EMULATOR_CALLED void sync_warp() { current()->calls->sync_warp(current(), EMULATOR_CALLER); }
EMULATOR_CALLED unsigned ballot(bool predicate) {
    return current()->calls->ballot(current(), predicate, EMULATOR_CALLER);
}
EMULATOR_CALLED uint64_t exchange_bits(uint64_t bits, int lane) {
    return current()->calls->exchange(current(), bits, static_cast<unsigned>(lane) % 32, EMULATOR_CALLER);
}

template <typename T>
inline T exchange(T value, int lane) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles values of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = exchange_bits(bits, lane);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

EMULATOR_CALLED void* shared(const void* key, size_t bytes) {
    return current()->calls->shared(current(), key, bytes, EMULATOR_CALLER);
}
EMULATOR_CALLED void* shared_dynamic() { return current()->calls->shared_dynamic(current()); }
EMULATOR_CALLED void copy_async(void* shared, const void* global, bool valid) {
    current()->calls->copy_async(current(), shared, global, valid, EMULATOR_CALLER);
}
EMULATOR_CALLED void copy_async_commit() { current()->calls->copy_async_commit(current()); }
EMULATOR_CALLED void copy_async_wait(int pending) {
    current()->calls->copy_async_wait(current(), static_cast<unsigned>(pending));
}
EMULATOR_CALLED void load_matrix(unsigned (&r)[4], const void* row, bool transposed) {
    current()->calls->load_matrix(current(), r, row, transposed, EMULATOR_CALLER);
}
EMULATOR_CALLED void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    current()->calls->mma(current(), d, a, b, true, EMULATOR_CALLER);
}
EMULATOR_CALLED void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    current()->calls->mma(current(), d, a, b, false, EMULATOR_CALLER);
}

// What lies on the thread's own stack is a local variable, which nobody else can reach.
inline void report(const void* address, size_t bytes, Access access, uintptr_t caller) {
    const uintptr_t stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    if ((reinterpret_cast<uintptr_t>(address) ^ stack) < stack_bytes) return;
    current()->calls->access(current(), address, bytes, access, caller);
}

// Blocks may run on several threads of the host.
EMULATOR_CALLED unsigned atomic_add(unsigned* address, unsigned value) {
    report(address, sizeof(unsigned), UPDATE, EMULATOR_CALLER);
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
EMULATOR_CALLED unsigned atomic_max(unsigned* address, unsigned value) {
    report(address, sizeof(unsigned), UPDATE, EMULATOR_CALLER);
    unsigned seen = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (seen < value &&
           !__atomic_compare_exchange_n(address, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return seen;
}
EMULATOR_CALLED void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

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

// Products of bf16 are exact in f64, and so are sums of which none is 2^37 times as large as the other.
inline unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    const auto half = [=](int shift) {
        const auto wide = [=](unsigned pair) { return static_cast<double>(reinterpret<float>(pair >> shift << 16)); };
        return static_cast<unsigned>(bf16_of_float(static_cast<float>(wide(a) * wide(b) + wide(c)))) << shift;
    };
    return half(0) | half(16);
}

inline float float_of_f16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return reinterpret<float>(fraction == 0 ? sign | 0x7f800000 : 0x7fffffff);
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

// ---- What -fsanitize=thread calls: each access before it is made.

extern "C" {
EMULATOR_CALLED void __tsan_init() {}
EMULATOR_CALLED void __tsan_func_entry(void*) {}
EMULATOR_CALLED void __tsan_func_exit() {}
#define EMULATOR_ACCESS(name, kind, bytes) \
    EMULATOR_CALLED void __tsan_##name(void* address) { emulator::report(address, bytes, emulator::kind, EMULATOR_CALLER); }
#define EMULATOR_ACCESSES(bytes)                           \
    EMULATOR_ACCESS(read##bytes, READ, bytes)              \
    EMULATOR_ACCESS(write##bytes, WRITE, bytes)            \
    EMULATOR_ACCESS(unaligned_read##bytes, READ, bytes)    \
    EMULATOR_ACCESS(unaligned_write##bytes, WRITE, bytes)
EMULATOR_ACCESSES(1)
EMULATOR_ACCESSES(2)
EMULATOR_ACCESSES(4)
EMULATOR_ACCESSES(8)
EMULATOR_ACCESSES(16)
EMULATOR_CALLED void __tsan_read_range(void* address, size_t bytes) {
    emulator::report(address, bytes, emulator::READ, EMULATOR_CALLER);
}
EMULATOR_CALLED void __tsan_write_range(void* address, size_t bytes) {
    emulator::report(address, bytes, emulator::WRITE, EMULATOR_CALLER);
}

// ---- What -fsanitize=alignment,bounds,… calls once it has found something.

#define EMULATOR_MISTAKE(handler, kind, ...)                                                                  \
    EMULATOR_CALLED void __ubsan_handle_##handler(const void* site, uintptr_t value __VA_ARGS__) {             \
        emulator::current()->calls->mistake(emulator::current(), emulator::kind, value, site, EMULATOR_CALLER);       \
    }
#define EMULATOR_SECOND , uintptr_t
EMULATOR_MISTAKE(type_mismatch_v1, MISALIGNED)
EMULATOR_MISTAKE(out_of_bounds, INDEX)
EMULATOR_MISTAKE(negate_overflow, OVERFLOWN)
EMULATOR_MISTAKE(add_overflow, OVERFLOWN, EMULATOR_SECOND)
EMULATOR_MISTAKE(sub_overflow, OVERFLOWN, EMULATOR_SECOND)
EMULATOR_MISTAKE(mul_overflow, OVERFLOWN, EMULATOR_SECOND)
EMULATOR_MISTAKE(shift_out_of_bounds, SHIFTED, EMULATOR_SECOND)
EMULATOR_MISTAKE(divrem_overflow, DIVIDED, EMULATOR_SECOND)
}

#define threadIdx (emulator::current()->thread)
#define blockIdx (emulator::current()->block)
#define blockDim (emulator::current()->threads)
#define gridDim (emulator::current()->grid)

#define EMULATOR_ENTRY(kernel)                                                                     \
    extern "C" __attribute__((no_sanitize("thread"))) void kernel##__enter(void** arguments) {     \
        emulator::enter(kernel, arguments);                                                        \
    }                                                                                              \
    extern "C" const char* kernel##__signature() { return emulator::signature(kernel); }
