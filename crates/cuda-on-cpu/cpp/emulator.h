// CUDA on one CPU core, for tests: what the text of a kernel needs to be compiled by g++ and run by emulator.cpp.
//
// Every CUDA thread is a fiber. Barriers and warp primitives are where fibers take turns; the order of blocks, warps
// and lanes is drawn from a seed, so that a missing barrier shows. Blocks run one after another: a kernel in which a
// block spins until another block has done something never ends here.
//
// Shared memory is filled with NaN before each block. Without AddressSanitizer it is thread-local storage, whose
// bounds the runtime can find; with it, it is static storage, which has red zones but cannot be filled.
#pragma once
#define SAE_EMULATED 1

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>
#include <utility>

namespace emulator {

struct Index {
    unsigned x, y, z;
};
struct Grid { // of the running block
    Index block, block_dim, grid_dim;
    unsigned char *dynamic; // dynamic shared memory
};
struct Thread {
    Index index;
    Grid *grid;
};
#pragma GCC visibility push(default)
// The running CUDA thread of this OS thread.
extern __thread Thread *current __attribute__((tls_model("initial-exec")));

struct Site { // a place in the source
    int line;
    const char *file;
};
enum Kind { SHUFFLE, BALLOT, MATCH, ADD, MIN, MAX, AND, OR, XOR };

// Waits for all threads of the block; the number of threads whose predicate holds.
unsigned barrier(bool predicate, Site site);
// Waits for all lanes of `mask`; what the primitive gives this lane.
uint64_t collective(Kind kind, unsigned mask, uint64_t value, unsigned source, Site site);
// Ends the launch with an error.
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#pragma GCC visibility pop

// One kernel of a file: `kinds` has a letter for each parameter, `most` is the threads that its launch bounds allow.
struct Kernel {
    const char *name, *kinds;
    uint64_t most;
    void (*call)(void (*body)(), const uint64_t *args);
    void (*body)();
};

template <typename A> constexpr char kind_of() {
    constexpr bool u32 = std::is_same<A, unsigned>::value, u64 = std::is_same<A, unsigned long long>::value;
    constexpr bool f32 = std::is_same<A, float>::value, pointer = std::is_pointer<A>::value;
    static_assert(u32 || u64 || f32 || pointer, "a kernel takes pointers, u32, u64 and float");
    return pointer ? 'p' : u32 ? 'u' : u64 ? 'l' : 'f';
}
template <typename A> A unpack(uint64_t bits) {
    A value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename... A> struct Signature {
    static constexpr char kinds[] = {kind_of<A>()..., 0};
    template <size_t... I> static void apply(void (*f)(A...), const uint64_t *args, std::index_sequence<I...>) {
        (void)args;
        f(unpack<A>(args[I])...);
    }
    static void call(void (*body)(), const uint64_t *args) {
        apply(reinterpret_cast<void (*)(A...)>(body), args, std::index_sequence_for<A...>());
    }
};
template <typename... A> Kernel kernel(const char *name, unsigned most, void (*f)(A...)) {
    return {name, Signature<A...>::kinds, most, Signature<A...>::call, reinterpret_cast<void (*)()>(f)};
}

template <typename T> uint64_t pack(T value) {
    static_assert(std::is_arithmetic<T>::value, "a warp primitive takes a number");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <typename T> T shuffle(unsigned mask, T value, unsigned source, Site site) {
    return unpack<T>(collective(SHUFFLE, mask, pack(value), source, site));
}
inline unsigned reduce(Kind kind, unsigned mask, unsigned value, Site site) {
    return (unsigned)collective(kind, mask, value, 0, site);
}

} // namespace emulator

// ---- the language

#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
// Read, and taken away, before a file is compiled (build.rs beside the other tests).
#define __launch_bounds__(...) __emulated_bounds__(__VA_ARGS__)
#define __align__(n) alignas(n)
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define DYNAMIC_SHARED(name) unsigned char *const name = emulator::current->grid->dynamic

#define threadIdx (static_cast<const emulator::Thread *>(emulator::current)->index)
#define blockIdx (static_cast<const emulator::Grid *>(emulator::current->grid)->block)
#define blockDim (static_cast<const emulator::Grid *>(emulator::current->grid)->block_dim)
#define gridDim (static_cast<const emulator::Grid *>(emulator::current->grid)->grid_dim)
#define warpSize 32

#define VECTORS(T, name, a2, a4)                                                                                       \
    struct alignas(a2) name##2 { T x, y; };                                                                            \
    struct alignas(a4) name##4 { T x, y, z, w; };                                                                      \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                         \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float, 8, 16)
VECTORS(unsigned, uint, 8, 16)
VECTORS(int, int, 8, 16)
VECTORS(unsigned short, ushort, 4, 8)
VECTORS(double, double, 16, 16)
VECTORS(unsigned long long, ulonglong, 16, 16)
#undef VECTORS

// ---- barriers and warp primitives; the last parameter is where the call stands

#define SITE emulator::Site site = {__builtin_LINE(), __builtin_FILE()}
#define LANE (emulator::current->index.x % 32)

inline void __syncthreads(SITE) { emulator::barrier(false, site); }
inline int __syncthreads_count(int p, SITE) { return (int)emulator::barrier(p != 0, site); }
inline int __syncthreads_or(int p, SITE) { return emulator::barrier(p != 0, site) != 0; }
inline int __syncthreads_and(int p, SITE) { return emulator::barrier(p != 0, site) == blockDim.x; }
inline void __syncwarp(unsigned mask = 0xffffffffu, SITE) { emulator::collective(emulator::BALLOT, mask, 0, 0, site); }

// A part of `width` lanes shuffles for itself; a source outside the part is the lane itself.
template <typename T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, SITE) {
    return emulator::shuffle(mask, v, (LANE & ~(unsigned)(width - 1)) | ((unsigned)from & (unsigned)(width - 1)), site);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, SITE) {
    unsigned from = LANE ^ (unsigned)bits, end = (LANE | (unsigned)(width - 1)) + 1;
    return emulator::shuffle(mask, v, from < end ? from : LANE, site);
}
template <typename T> T __shfl_up_sync(unsigned mask, T v, unsigned step, int width = 32, SITE) {
    unsigned inside = LANE & (unsigned)(width - 1);
    return emulator::shuffle(mask, v, inside >= step ? LANE - step : LANE, site);
}
template <typename T> T __shfl_down_sync(unsigned mask, T v, unsigned step, int width = 32, SITE) {
    unsigned inside = LANE & (unsigned)(width - 1);
    return emulator::shuffle(mask, v, inside + step < (unsigned)width ? LANE + step : LANE, site);
}
inline unsigned __ballot_sync(unsigned mask, int p, SITE) {
    return emulator::reduce(emulator::BALLOT, mask, p != 0, site);
}
inline int __any_sync(unsigned mask, int p, SITE) { return __ballot_sync(mask, p, site) != 0; }
inline int __all_sync(unsigned mask, int p, SITE) { return __ballot_sync(mask, p, site) == mask; }
template <typename T> unsigned __match_any_sync(unsigned mask, T v, SITE) {
    return (unsigned)emulator::collective(emulator::MATCH, mask, emulator::pack(v), 0, site);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned v, SITE) { return emulator::reduce(emulator::ADD, mask, v, site); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned v, SITE) { return emulator::reduce(emulator::MIN, mask, v, site); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, SITE) { return emulator::reduce(emulator::MAX, mask, v, site); }
inline unsigned __reduce_and_sync(unsigned mask, unsigned v, SITE) { return emulator::reduce(emulator::AND, mask, v, site); }
inline unsigned __reduce_or_sync(unsigned mask, unsigned v, SITE) { return emulator::reduce(emulator::OR, mask, v, site); }
inline unsigned __reduce_xor_sync(unsigned mask, unsigned v, SITE) { return emulator::reduce(emulator::XOR, mask, v, site); }
#undef SITE
#undef LANE

// ---- memory: one OS thread runs the launch, so plain loads and stores are atomic

#define ATOMIC(T, name, result)                                                                                        \
    inline T name(T *p, T v) {                                                                                         \
        T old = *p;                                                                                                    \
        *p = result;                                                                                                   \
        return old;                                                                                                    \
    }
#define ATOMICS(T)                                                                                                     \
    ATOMIC(T, atomicAdd, old + v) ATOMIC(T, atomicSub, old - v) ATOMIC(T, atomicExch, v)                               \
    ATOMIC(T, atomicMax, old > v ? old : v) ATOMIC(T, atomicMin, old < v ? old : v)                                    \
    ATOMIC(T, atomicAnd, old & v) ATOMIC(T, atomicOr, old | v) ATOMIC(T, atomicXor, old ^ v)                           \
    inline T atomicCAS(T *p, T expected, T v) {                                                                        \
        T old = *p;                                                                                                    \
        if (old == expected) *p = v;                                                                                   \
        return old;                                                                                                    \
    }
ATOMICS(int)
ATOMICS(unsigned)
ATOMICS(unsigned long long)
ATOMIC(float, atomicAdd, old + v)
ATOMIC(float, atomicExch, v)
ATOMIC(double, atomicAdd, old + v)
ATOMIC(unsigned, atomicInc, old >= v ? 0 : old + 1)
#undef ATOMIC
#undef ATOMICS

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { emulator::fail("__trap"); }
template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T __ldcg(const T *p) { return *p; }
template <typename T> T __ldcs(const T *p) { return *p; }
template <typename T> void __stcg(T *p, T v) { *p = v; }
template <typename T> void __stcs(T *p, T v) { *p = v; }

// ---- arithmetic

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(unsigned long long v) { return v ? __builtin_clzll(v) : 64; }
inline int __ffs(unsigned v) { return __builtin_ffs((int)v); }
inline int __ffsll(unsigned long long v) { return __builtin_ffsll((long long)v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned __brev(unsigned v) {
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (v >> i & 1u) << (31 - i);
    return out;
}

inline float __uint_as_float(unsigned v) { return emulator::unpack<float>(v); }
inline float __int_as_float(int v) { return emulator::unpack<float>((unsigned)v); }
inline unsigned __float_as_uint(float v) { return (unsigned)emulator::pack(v); }
inline int __float_as_int(float v) { return (int)(unsigned)emulator::pack(v); }
inline long long __double_as_longlong(double v) { return (long long)emulator::pack(v); }
inline double __longlong_as_double(long long v) { return emulator::unpack<double>((uint64_t)v); }
inline int __float2int_rn(float v) { return (int)lrintf(v); }
inline int __float2int_rz(float v) { return (int)v; }
inline int __float2int_rd(float v) { return (int)floorf(v); }
inline unsigned __float2uint_rn(float v) { return (unsigned)lrintf(v); }
inline unsigned __float2uint_rz(float v) { return (unsigned)v; }
inline float __uint2float_rn(unsigned v) { return (float)v; }
inline float __int2float_rn(int v) { return (float)v; }
inline float __double2float_rn(double v) { return (float)v; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return expf(v); }
inline float __logf(float v) { return logf(v); }
inline float __log2f(float v) { return log2f(v); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }

// CUDA's overloads: the other operand where one is NaN.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
#define INTEGERS(T)                                                                                                    \
    inline T min(T a, T b) { return a < b ? a : b; }                                                                   \
    inline T max(T a, T b) { return a > b ? a : b; }
INTEGERS(int)
INTEGERS(unsigned)
INTEGERS(long long)
INTEGERS(unsigned long long)
#undef INTEGERS

// IEEE half precision to float32, exact.
inline float emulated_f16(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint((float)fraction * 0x1p-24f));
    return __uint_as_float(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}
