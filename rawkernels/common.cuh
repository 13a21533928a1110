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

__device__ __forceinline__ ACC load(const T* address) {
#if defined(SCALAR_IS_HALF)
    return __half2float(*address);
#elif defined(SCALAR_IS_BFLOAT16)
    return __bfloat162float(*address);
#else
    return *address;
#endif
}

__device__ __forceinline__ void store(T* address, ACC value) {
#if defined(SCALAR_IS_HALF)
    *address = __float2half(value);  // rounds to nearest even
#elif defined(SCALAR_IS_BFLOAT16)
    *address = __float2bfloat16(value);  // rounds to nearest even
#else
    *address = value;
#endif
}

// Elements of the type T or of the accumulator's.
template <class E>
__device__ __forceinline__ ACC load_any(const E* address) {
    if constexpr (sizeof(E) == sizeof(ACC)) {
        return *reinterpret_cast<const ACC*>(address);
    } else {
        return load(reinterpret_cast<const T*>(address));
    }
}

template <class E>
__device__ __forceinline__ void store_any(E* address, ACC value) {
    if constexpr (sizeof(E) == sizeof(ACC)) {
        *reinterpret_cast<ACC*>(address) = value;
    } else {
        store(reinterpret_cast<T*>(address), value);
    }
}

// Reads a part of a coordinate. CuPy compiles with -ftz=true, and a number below zero that is subnormal would be taken
// for zero, which has another pixel to its left: such numbers become the smallest ones that are not.
template <class E>
__device__ __forceinline__ ACC load_coordinate(const E* address) {
    const ACC value = load_any(address);
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
