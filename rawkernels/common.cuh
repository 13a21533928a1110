#pragma once
// What every kernel of this package uses: the scalar, accumulator and index types, and how an element is
// read into the accumulator type and written back.
//
// The Python side puts these constants in front of the text; the defaults serve an editor or plain nvcc.
//   SCALAR        type of the array elements: float, double, __half, __nv_bfloat16
//   ACCUMULATOR   type of all arithmetic: double for double, float for the others
//   INDEX_TYPE    type of offsets: int, or long long where an array has 2^31 elements or more
#ifndef SCALAR
#define SCALAR float
#define ACCUMULATOR float
#define INDEX_TYPE int
#endif
#if defined(SCALAR_IS_HALF)
#include <cuda_fp16.h>
#elif defined(SCALAR_IS_BFLOAT16)
#include <cuda_bf16.h>
#endif

typedef SCALAR T;
typedef ACCUMULATOR ACC;
typedef INDEX_TYPE INDEX;

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;
constexpr int SUMMED = 128;  // terms added up one after the other: what is rounded off grows with their number

// An element in the accumulator type. Beside 16-bit elements of type T some arrays hold float.
__device__ __forceinline__ ACC widened(ACC value) { return value; }
#if defined(SCALAR_IS_HALF)
__device__ __forceinline__ ACC widened(__half value) { return __half2float(value); }
#elif defined(SCALAR_IS_BFLOAT16)
__device__ __forceinline__ ACC widened(__nv_bfloat16 value) { return __bfloat162float(value); }
#endif

template <class ELEMENT>
__device__ __forceinline__ ACC load(const ELEMENT* address) {
    return widened(*address);
}

__device__ __forceinline__ void store(ACC* address, ACC value) { *address = value; }
#if defined(SCALAR_IS_HALF)
__device__ __forceinline__ void store(__half* address, ACC value) { *address = __float2half(value); }
#elif defined(SCALAR_IS_BFLOAT16)
__device__ __forceinline__ void store(__nv_bfloat16* address, ACC value) { *address = __float2bfloat16(value); }
#endif

// Reads a part of a coordinate. CuPy compiles with -ftz=true, and a number below zero that is subnormal would be taken
// for zero, which has another pixel to its left: such numbers become the smallest ones that are not.
template <class ELEMENT>
__device__ __forceinline__ ACC load_coordinate(const ELEMENT* address) {
    const ACC value = load(address);
    if constexpr (sizeof(ACC) == sizeof(float)) {
        const unsigned bits = __float_as_uint(value);
        const bool subnormal = (bits & 0x7f800000u) == 0 && (bits & 0x007fffffu) != 0;
        return subnormal ? __uint_as_float((bits & 0x80000000u) | 0x00800000u) : value;
    } else {
        return value;
    }
}

// Index of this thread in a one-dimensional grid.
__device__ __forceinline__ INDEX thread_index() {
    return static_cast<INDEX>(blockIdx.x) * static_cast<INDEX>(blockDim.x) + static_cast<INDEX>(threadIdx.x);
}

// Split off the fastest-varying coordinate of a flat index: returns it, and leaves the rest in `flat`.
__device__ __forceinline__ INDEX take(INDEX& flat, INDEX size) {
    const INDEX rest = flat / size;
    const INDEX coordinate = flat - rest * size;
    flat = rest;
    return coordinate;
}
