#pragma once
// Bilinear interpolation in an image that is zero outside, and its adjoint, side by side.
//
// A point is set up once and then serves any number of channels. Its four corners are numbered 2*i + j for the pixel
// i rows below and j columns right of the top left one. With s_k the sum over channels of gradient * corner k, all
// derivatives by the point follow from s_0 to s_3: see PointGradient.
//
// A point one pixel or more away from the image has no corner inside and fractions 0, at infinity too; a point with a
// NaN coordinate has no corner inside and fractions NaN, so that what is computed from it is NaN. Corners outside count
// as pixels of value 0 and take part in products: an infinite gradient there gives NaN, as in the formula. So does a
// corner with a weight of 0: the definition is a sum over corners, forward and in s_0 to s_3 alike.
#include "common.cuh"

// What positions and masks are: SCALAR, or ACCUMULATOR beside images of 16 bits.
#ifndef POSITION
#define POSITION SCALAR
#endif
typedef POSITION P;

constexpr int CORNERS = 4;
constexpr int ALL_INSIDE = 15;
constexpr double FARTHEST = 1LL << 33;  // pixels: from there no base of 32 bits leads back to an image

struct Point {
    INDEX corner;  // pixel index of the top left corner; may lie outside the image where `inside` says so
    int inside;    // bit k: corner k lies inside the image
    ACC ly, lx;    // how far the point is from the top left corner
};

// A coordinate: whole pixels away from `base` and the rest, which far from the origin their sum would round away.
struct Coordinate {
    int base;
    ACC offset;

    // The last whole pixel up to here and what is left; false where that is one pixel or more outside of `size`.
    __device__ __forceinline__ bool split(int size, int& pixel, ACC& rest) const {
        const ACC whole = floor(offset);
        if (!(whole > ACC(-FARTHEST) && whole < ACC(FARTHEST))) return false;  // as for NaN
        const long long at = base + static_cast<long long>(whole);
        pixel = static_cast<int>(at);
        rest = offset - whole;
        return at < size && (at >= 0 || (at == -1 && rest > 0));
    }
};

// The point (y, x) of an image whose pixels are numbered from `first`.
__device__ __forceinline__ Point set_up_point(Coordinate y, Coordinate x, INDEX first, int height, int width) {
    Point point = {first, 0, ACC(0), ACC(0)};
    int row, column;
    ACC ly, lx;
    if (y.split(height, row, ly) && x.split(width, column, lx)) {
        point.ly = ly;
        point.lx = lx;
        point.corner = first + static_cast<INDEX>(row) * width + column;
        const int rows = (row >= 0 ? 3 : 0) | (row + 1 < height ? 12 : 0);
        const int columns = (column >= 0 ? 5 : 0) | (column + 1 < width ? 10 : 0);
        point.inside = rows & columns;
    } else if (y.offset != y.offset || x.offset != x.offset) {
        point.ly = point.lx = y.offset + x.offset;
    }
    return point;
}

__device__ __forceinline__ void corner_weights(ACC ly, ACC lx, ACC (&weight)[CORNERS]) {
    const ACC hy = ACC(1) - ly, hx = ACC(1) - lx;
    weight[0] = hy * hx;
    weight[1] = hy * lx;
    weight[2] = ly * hx;
    weight[3] = ly * lx;
}

// Where the value of corner k lies, for values `step` apart per pixel in rows of `width` pixels.
__device__ __forceinline__ INDEX corner_offset(int k, INDEX step, int width) {
    return (k & 1 ? step : 0) + (k & 2 ? step * width : 0);
}

// VEC adjacent channels, read and written by one access.
struct alignas(VEC * sizeof(T)) Channels {
    T value[VEC];
};
struct alignas(VEC * sizeof(ACC) > 16 ? 16 : VEC * sizeof(ACC)) Sums {
    ACC value[VEC];
};

// The four corners of VEC channels; `pixel` is where the top left one would lie.
__device__ __forceinline__ void load_corners(
    const T* __restrict__ image, INDEX pixel, INDEX step, int width, int inside, ACC (&corner)[CORNERS][VEC]) {
    Channels read[CORNERS];
    if (inside == ALL_INSIDE) {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k)
            read[k] = *reinterpret_cast<const Channels*>(image + pixel + corner_offset(k, step, width));
    } else {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) {
            if (inside >> k & 1) {
                read[k] = *reinterpret_cast<const Channels*>(image + pixel + corner_offset(k, step, width));
            } else {
#pragma unroll
                for (int v = 0; v < VEC; ++v) store(&read[k].value[v], ACC(0));
            }
        }
    }
#pragma unroll
    for (int k = 0; k < CORNERS; ++k)
#pragma unroll
        for (int v = 0; v < VEC; ++v) corner[k][v] = load(&read[k].value[v]);
}

// Forward: the interpolated value.
__device__ __forceinline__ ACC interpolate(const ACC (&weight)[CORNERS], ACC c0, ACC c1, ACC c2, ACC c3) {
    return (weight[0] * c0 + weight[1] * c1) + (weight[2] * c2 + weight[3] * c3);
}

// Adjoint: add the gradient of VEC channels to the corners that they were made from.
__device__ __forceinline__ void add_to_corners(
    ACC* __restrict__ image, INDEX pixel, INDEX step, int width, int inside, const ACC (&weight)[CORNERS],
    const ACC (&gradient)[VEC]) {
#pragma unroll
    for (int k = 0; k < CORNERS; ++k) {
        if (!(inside >> k & 1)) continue;
        ACC* target = image + pixel + corner_offset(k, step, width);
// The headers of CUDA 12.0 do not declare these atomics yet.
#if VEC % 4 == 0 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
        if constexpr (sizeof(ACC) == 4) {  // one transaction for four channels
#pragma unroll
            for (int v = 0; v < VEC; v += 4) {
                const float4 sum = {gradient[v] * weight[k], gradient[v + 1] * weight[k],
                                    gradient[v + 2] * weight[k], gradient[v + 3] * weight[k]};
                atomicAdd(reinterpret_cast<float4*>(target + v), sum);
            }
            continue;
        }
#endif
#pragma unroll
        for (int v = 0; v < VEC; ++v) atomicAdd(target + v, gradient[v] * weight[k]);
    }
}

// Adjoint: what the point itself gets, from s_k = sum over channels of gradient * corner k.
struct PointGradient {
    ACC value, y, x;  // of the factor in front of the interpolation, and of the coordinates before that factor
};

__device__ __forceinline__ PointGradient point_gradient(ACC ly, ACC lx, const ACC (&s)[CORNERS]) {
    ACC weight[CORNERS];
    corner_weights(ly, lx, weight);
    return {interpolate(weight, s[0], s[1], s[2], s[3]),
            (ACC(1) - lx) * (s[2] - s[0]) + lx * (s[3] - s[1]),
            (ACC(1) - ly) * (s[1] - s[0]) + ly * (s[3] - s[2])};
}
