// __half for a host compiler: 16 bits of storage; conversions round to nearest even, as CUDA's do.
#pragma once
#include "cuda_shim.h"

struct __half { uint16_t bits; };

inline __half __float2half(float value) {
    const uint32_t word = shim_bits<uint32_t>(value), magnitude = word & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return {0x7fff};                                       // NaN
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};       // 65520 and up: infinity
    uint32_t kept, rest, half;
    if (magnitude >= 0x38800000u) {  // normal: drop 13 bits of the fraction, move the exponent from bias 127 to 15
        kept = (magnitude >> 13) - (112u << 10);
        rest = magnitude & 0x1fffu;
        half = 0x1000u;
    } else {  // subnormal: units of 2^-24
        const int shift = 126 - static_cast<int>(magnitude >> 23);
        if (shift > 24) return {sign};  // below half a unit, which is 2^-25
        const uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
        kept = fraction >> shift;
        rest = fraction & ((1u << shift) - 1);
        half = 1u << (shift - 1);
    }
    if (rest > half || (rest == half && (kept & 1u))) ++kept;  // a carry into the exponent is right
    return {static_cast<uint16_t>(sign | kept)};
}
inline __half __float2half_rn(float value) { return __float2half(value); }

inline float __half2float(__half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t exponent = value.bits >> 10 & 31u, fraction = value.bits & 0x3ffu;
    if (exponent == 31) return shim_bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-08f;  // 2^-24
        return sign ? -magnitude : magnitude;
    }
    return shim_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

struct alignas(4) __half2 { __half x, y; };
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
