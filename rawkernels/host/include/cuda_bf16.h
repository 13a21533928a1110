// __nv_bfloat16 for a host compiler: the upper half of a float; conversions round to nearest even, as CUDA's do.
#pragma once
#include "cuda_shim.h"

struct __nv_bfloat16 { uint16_t bits; };

inline __nv_bfloat16 __float2bfloat16(float value) {
    const uint32_t word = shim_bits<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // NaN
    return {static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __float2bfloat16(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return shim_bits<float>(static_cast<uint32_t>(value.bits) << 16); }

struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
    return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
