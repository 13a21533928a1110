// The part of CUDA C++ that our kernels use, for a host compiler. It is put in front of an unchanged .cu text.
// Threads of a block are run by runtime.cpp, one fiber each; everything here is either plain arithmetic or a
// call into it. Library calls are declared, not included, to keep compilation short.
#pragma once
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Of one block at a time and one system thread: a block-scope thread_local is static, and `extern` may precede it.
#define __shared__ thread_local

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 { unsigned x, y, z; };

// ---- runtime.cpp -------------------------------------------------------------------------------------------------
struct ShimThread { uint3 thread, block; dim3 block_size, grid_size; };
extern "C" {
const ShimThread* shim_current();  // of the fiber that is running
void shim_barrier();
// Exchange 8 bytes with the lanes of `mask` in this warp; returns lane `source`'s value.
uint64_t shim_exchange(unsigned mask, uint64_t value, int source);
int shim_lane();
unsigned shim_ballot(unsigned mask, int predicate);
}
#define threadIdx (shim_current()->thread)
#define blockIdx (shim_current()->block)
#define blockDim (shim_current()->block_size)
#define gridDim (shim_current()->grid_size)
constexpr int warpSize = 32;

inline void __syncthreads() { shim_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim_exchange(mask, 0, shim_lane()); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return shim_ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return shim_ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return shim_ballot(mask, !predicate) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class V>
inline V shim_shuffle(unsigned mask, V value, int source) {
    static_assert(sizeof(V) <= 8, "shuffles move up to 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shim_exchange(mask, bits, source);
    memcpy(&value, &bits, sizeof value);
    return value;
}
// Lanes are grouped into segments of `width`; a source outside the segment leaves the lane its own value.
template <class V>
inline V __shfl_sync(unsigned mask, V value, int source, int width = 32) {
    const int lane = shim_lane(), base = lane / width * width;
    return shim_shuffle(mask, value, base + (source & (width - 1)));
}
template <class V>
inline V __shfl_down_sync(unsigned mask, V value, unsigned delta, int width = 32) {
    const int lane = shim_lane(), end = lane / width * width + width, source = lane + static_cast<int>(delta);
    return shim_shuffle(mask, value, source < end ? source : lane);
}
template <class V>
inline V __shfl_up_sync(unsigned mask, V value, unsigned delta, int width = 32) {
    const int lane = shim_lane(), base = lane / width * width, source = lane - static_cast<int>(delta);
    return shim_shuffle(mask, value, source >= base ? source : lane);
}
template <class V>
inline V __shfl_xor_sync(unsigned mask, V value, int lane_mask, int width = 32) {
    const int lane = shim_lane(), end = lane / width * width + width, source = lane ^ lane_mask;
    return shim_shuffle(mask, value, source < end ? source : lane);
}

// One system thread runs all fibers of a launch, and fibers change only at the calls above: plain code is atomic.
template <class V>
inline V atomicAdd(V* address, V value) { const V old = *address; *address = old + value; return old; }
template <class V>
inline V atomicMax(V* address, V value) { const V old = *address; if (value > old) *address = value; return old; }
template <class V>
inline V atomicMin(V* address, V value) { const V old = *address; if (value < old) *address = value; return old; }
template <class V>
inline V atomicExch(V* address, V value) { const V old = *address; *address = value; return old; }
template <class V>
inline V atomicCAS(V* address, V expected, V value) {
    const V old = *address;
    if (old == expected) *address = value;
    return old;
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------
template <class V> inline V __ldg(const V* address) { return *address; }
template <class V> inline V __ldcs(const V* address) { return *address; }
template <class V> inline void __stcs(V* address, V value) { *address = value; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline double rsqrt(double value) { return 1.0 / sqrt(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __float2int_rd(float value) { return static_cast<int>(floorf(value)); }
inline int __double2int_rd(double value) { return static_cast<int>(floor(value)); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
template <class To, class From>
inline To shim_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
inline float __int_as_float(int value) { return shim_bits<float>(value); }
inline int __float_as_int(float value) { return shim_bits<int>(value); }
inline float __uint_as_float(unsigned value) { return shim_bits<float>(value); }
inline unsigned __float_as_uint(float value) { return shim_bits<unsigned>(value); }

// ---- vector types, aligned as CUDA aligns them: a misaligned access is a fault there --------------------------------
#define SHIM_VECTORS(scalar, name, bytes)                                                                           \
    struct alignas(2 * bytes) name##2 { scalar x, y; };                                                              \
    struct alignas(16 < 4 * bytes ? 16 : 4 * bytes) name##4 { scalar x, y, z, w; };                                  \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                                             \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
SHIM_VECTORS(float, float, 4)
SHIM_VECTORS(int, int, 4)
SHIM_VECTORS(unsigned, uint, 4)
SHIM_VECTORS(double, double, 8)
#undef SHIM_VECTORS
