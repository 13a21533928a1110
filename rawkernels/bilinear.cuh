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

// What positions are: SCALAR, or float beside images of 16 bits.
#ifndef POSITION
#define POSITION SCALAR
#endif
typedef POSITION P;

constexpr int CORNERS = 4;
constexpr int ALL_INSIDE = 15;
constexpr double FARTHEST = 1LL << 33;  // pixels: from there no base of 32 bits leads back to an image

// What is outside the image: zeros, or each corner a copy of a pixel inside, as NumPy's words for it say.
constexpr int CONSTANT = 0, REFLECT = 1, SYMMETRIC = 2, EDGE = 3, WRAP = 4;
// Where the next corner along an axis is: a pixel further; or, at such a border, a pixel back, the same, or at the
// other end.
constexpr int AHEAD = 0, BACK = 1, SAME = 2, OTHER_END = 3;
constexpr int COLUMN_STEP = 4, ROW_STEP = 6;  // bits of Point::inside from which on it says so

__device__ __forceinline__ int step_along(int inside, int bit, int size) {
    const int code = inside >> bit & 3;
    return code == AHEAD ? 1 : code == BACK ? -1 : code == SAME ? 0 : 1 - size;
}

struct Point {
    INDEX corner;  // pixel index of the top left corner; may lie outside the image where `inside` says so
    int inside;    // bit k: corner k lies inside the image; and the steps to the next corners
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

    // The same where corners outside are copies: the pixel of the first, and where the next one is. False if there is
    // none, as for NaN; at an edge infinity is a place like others.
    __device__ __forceinline__ bool split(int size, int border, int& pixel, int& step, ACC& rest) const {
        const ACC whole = floor(offset);
        const bool reaching = whole > ACC(-FARTHEST) && whole < ACC(FARTHEST);
        if (offset != offset || (border != EDGE && offset - offset != ACC(0))) return false;
        rest = offset - offset == ACC(0) ? offset - whole : ACC(0);
        const long long period = border == WRAP ? size : border == SYMMETRIC ? 2LL * size : max(1LL, 2LL * size - 2);
        long long at = base;
        if (reaching) {
            at += static_cast<long long>(whole);
        } else if (border == EDGE) {
            at += static_cast<long long>(whole > ACC(0) ? FARTHEST : -FARTHEST);
        } else {
            at += remainder(whole, period);
        }
        long long next = at + 1;
        if (at < 0 || next >= size) {
            at = copied(at, size, border, period);
            next = copied(next, size, border, period);
        }
        pixel = static_cast<int>(at);
        step = next == at + 1 ? AHEAD : next == at ? SAME : next == at - 1 ? BACK : OTHER_END;
        return true;
    }

    // What is left of a large whole number after a multiple of the period, which has 33 bits at most: exact.
    static __device__ __forceinline__ long long remainder(ACC whole, long long period) {
        ACC size = whole < ACC(0) ? -whole : whole;
        int halved = 0;
        for (; size >= ACC(1LL << 62); size *= ACC(0.5)) ++halved;
        long long left = static_cast<long long>(size) % period;
        for (; halved > 0; --halved) left = 2 * left % period;
        return whole < ACC(0) ? -left : left;
    }

    // The pixel inside that one outside is a copy of.
    static __device__ __forceinline__ long long copied(long long at, int size, int border, long long period) {
        if (border == EDGE) return at < 0 ? 0 : at < size ? at : size - 1LL;
        at %= period;
        if (at < 0) at += period;
        return border == WRAP ? at : min(at, (border == REFLECT ? period : period - 1) - at);
    }
};

// The point (y, x) of an image whose pixels are numbered from `first`.
__device__ __forceinline__ Point set_up_point(
    Coordinate y, Coordinate x, INDEX first, int height, int width, int border) {
    Point point = {first, 0, ACC(0), ACC(0)};
    int row, column;
    ACC ly, lx;
    if (border != CONSTANT) {
        int row_step, column_step;
        if (y.split(height, border, row, row_step, ly) && x.split(width, border, column, column_step, lx)) {
            point.ly = ly;
            point.lx = lx;
            point.corner = first + static_cast<INDEX>(row) * width + column;
            point.inside = ALL_INSIDE | row_step << ROW_STEP | column_step << COLUMN_STEP;
        } else {  // NaN, of NaN and of infinity
            point.ly = point.lx = (y.offset - y.offset) + (x.offset - x.offset);
        }
    } else if (y.split(height, row, ly) && x.split(width, column, lx)) {
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

// The same where the next corners may be elsewhere than a pixel further.
__device__ __forceinline__ INDEX corner_offset(int k, INDEX step, int height, int width, int inside) {
    return (k & 1 ? step * step_along(inside, COLUMN_STEP, width) : 0) +
           (k & 2 ? step * width * step_along(inside, ROW_STEP, height) : 0);
}

// The four corners of VEC channels; `pixel` is where the top left one would lie.
__device__ __forceinline__ void load_corners(
    const T* __restrict__ image, INDEX pixel, INDEX step, int height, int width, int inside,
    ACC (&corner)[CORNERS][VEC]) {
    Channels read[CORNERS];
    if (inside == ALL_INSIDE) {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k)
            read[k] = *reinterpret_cast<const Channels*>(image + pixel + corner_offset(k, step, width));
    } else {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) {
            if (inside >> k & 1) {
                const INDEX there = pixel + corner_offset(k, step, height, width, inside);
                read[k] = *reinterpret_cast<const Channels*>(image + there);
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
    ACC* __restrict__ image, INDEX pixel, INDEX step, int height, int width, int inside,
    const ACC (&weight)[CORNERS], const ACC (&gradient)[VEC]) {
#pragma unroll
    for (int k = 0; k < CORNERS; ++k) {
        if (!(inside >> k & 1)) continue;
        ACC* target = image + pixel + corner_offset(k, step, height, width, inside);
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
