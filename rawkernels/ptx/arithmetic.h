// What arithmetic instructions of PTX compute where C++ has no operator for it, or leaves it undefined.
// The expressions in opcodes.py use these names. Signed integers wrap (-fwrapv).
#pragma once
#include <stdint.h>
#include <string.h>

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int8_t s8; typedef int16_t s16; typedef int32_t s32; typedef int64_t s64;

template <class To, class From> inline To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    return __builtin_bit_cast(To, value);
}

// ---- integers

template <class V> inline V shift_left(V value, u32 by) { return by < 8 * sizeof(V) ? value << by : 0; }
template <class V> inline V shift_right(V value, u32 by) {  // of signed values: copies of the sign
    const u32 most = 8 * sizeof(V) - 1;
    return by <= most ? value >> by : V(-1) < 0 ? value >> most : 0;
}
template <class V> inline V bits_inserted(V source, V into, u32 position, u32 length) {
    position &= 255, length &= 255;
    const u32 bits = 8 * sizeof(V);
    if (position >= bits) return into;
    const V mask = (length >= bits ? ~V(0) : (V(1) << length) - 1) << position;
    return (into & ~mask) | (source << position & mask);
}
inline u32 leading_zeros(u32 value) { return value ? __builtin_clz(value) : 32; }
inline u32 leading_zeros(u64 value) { return value ? __builtin_clzll(value) : 64; }
template <typename U>
inline U bits_reversed(U value) {
    U result = 0;
    for (unsigned i = 0; i < 8 * sizeof(U); ++i) result |= (value >> i & 1) << (8 * sizeof(U) - 1 - i);
    return result;
}
inline s32 high_half(s32 a, s32 b) { return s32(s64(a) * b >> 32); }
inline u32 high_half(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
inline s64 high_half(s64 a, s64 b) { return s64(__int128(a) * b >> 64); }
inline u64 high_half(u64 a, u64 b) { return u64((unsigned __int128)(a) * b >> 64); }

// ---- floating point

// What .ftz does to operands and results: a subnormal number becomes a zero of its sign.
inline float flushed(float value) {
    const u32 bits = same_bits<u32>(value);
    return bits & 0x7f800000u ? value : same_bits<float>(bits & 0x80000000u);
}
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float root(float value) { return __builtin_sqrtf(value); }
inline double root(double value) { return __builtin_sqrt(value); }
inline float magnitude(float value) { return __builtin_fabsf(value); }
inline double magnitude(double value) { return __builtin_fabs(value); }
template <class V> inline bool unordered(V a, V b) { return a != a || b != b; }
// The number where one of the two is NaN; -0 is less than +0.
template <class V> inline V smaller(V a, V b) {
    if (a == b) return __builtin_signbit(a) ? a : b;
    return b != b || a < b ? a : b;
}
template <class V> inline V larger(V a, V b) {
    if (a == b) return __builtin_signbit(a) ? b : a;
    return b != b || a > b ? a : b;
}
inline float nearest(float value) { return __builtin_rintf(value); }
inline double nearest(double value) { return __builtin_rint(value); }
inline float truncated(float value) { return __builtin_truncf(value); }
inline double truncated(double value) { return __builtin_trunc(value); }
inline float rounded_down(float value) { return __builtin_floorf(value); }
inline double rounded_down(double value) { return __builtin_floor(value); }
inline float rounded_up(float value) { return __builtin_ceilf(value); }
inline double rounded_up(double value) { return __builtin_ceil(value); }
// A whole number as an integer: the nearest one that there is, and of NaN 0, or in 64 bits the highest bit alone.
template <class Integer, class V> inline Integer saturated(V value) {
    const bool is_signed = Integer(-1) < 0;
    const int bits = 8 * sizeof(Integer);
    const Integer lowest = is_signed ? Integer(u64(1) << (bits - 1)) : 0;
    if (value != value) return bits == 64 ? Integer(u64(1) << 63) : 0;
    const double end = (is_signed ? 0.5 : 1.0) * (bits == 64 ? 18446744073709551616.0 : double(u64(1) << (bits % 64)));
    if (value >= end) return ~lowest;
    if (value < double(lowest)) return lowest;
    return Integer(value);
}

// ---- 16-bit floats, which registers hold as bits; rounded to nearest, ties to even

inline float from_bfloat16(u16 bits) { return same_bits<float>(u32(bits) << 16); }
inline u16 to_bfloat16(float value) {
    const u32 bits = same_bits<u32>(value);
    return value != value ? 0x7fff : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_half(u16 bits) {
    const u32 sign = u32(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return same_bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return same_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
    const float subnormal = float(fraction) * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}
inline u16 to_half(float value) {
    const u32 bits = same_bits<u32>(value), size = bits & 0x7fffffffu;
    const u16 sign = bits >> 16 & 0x8000;
    if (value != value) return 0x7fff;
    if (size >= 0x477ff000u) return sign | 0x7c00;  // half a unit above the largest number, and more
    if (size < 0x38800000u) return sign | u16(__builtin_rintf(same_bits<float>(size) * 0x1p24f));
    return sign | u16((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
}
