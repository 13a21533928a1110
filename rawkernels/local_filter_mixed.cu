// mixed_filter: local_filter with filters that are mixed, at each output pixel, of a few kernels that all pixels share.
//
//   x (N,C,H,W)  kernels (K,taps,B)  mixture (N,G,B,Ho,Wo)  y (N,C,Ho,Wo)     K is 1, or C: kernels of each channel
//   kernels and their gradient are in the accumulator type, B padded with zeros to whole BASES; mixture is of type F
//   y[n,c,p] = sum over taps of filter[n,c,tap,p] * x[n,c,q]
//   filter[n,c,tap,p] = sum over b of mixture[n,g(c),b,p] * kernels[k(c),tap,b]
//   q = (h*s_y - pad_y + i*d_y, w*s_x - pad_x + j*d_x) for tap (i, j)
//
// How work is laid out. Filters are made where they are applied, tap by tap, and never stored. A thread takes PIXELS
// rows of one column, whose mixtures stay in registers, and up to STRIP channels: a value of a kernel, which is the
// same for all threads of a warp, serves PIXELS multiply-adds, a filter up to STRIP. Consecutive threads take
// consecutive columns, so that a warp reads and writes adjacent addresses. The gradient of x gathers: pixel by pixel
// and tap by tap the output that reads it, if there is one, whose mixture is read again. The gradients of mixture and
// kernels begin with that of the filters, a sum over channels, for STRIP taps at a time.
//
// Costs per output pixel and tap of the forward pass with 3 channels that share 8 kernels, float32: 11 multiply-adds,
// and 5 requests (2 of kernels, which PIXELS share, 3 of x); memory 4*(B + 2*C) bytes a pixel, whatever the taps. An SM
// of an H200 does 4 multiply-adds of a warp a cycle and one request: requests are the bound, and memory far from it.
//
// Outside the image x is 0, and that zero takes part in products: an infinite filter value there gives NaN.
// The gradient of x sums over existing output pixels only. No kernel uses atomics: equal inputs, equal bits.
//
// Constants from the Python side (local_filter_mixed.py explains the choice):
//   FILTER   type of mixture: SCALAR, or float beside 16 bits
//   OWN      1: each channel has kernels of its own;  PIXELS  rows of a thread
#ifndef OWN
#define OWN 0
#define PIXELS 4
#endif
#include "common.cuh"
#include "sums.cuh"
#ifndef FILTER
#define FILTER SCALAR
#endif

typedef FILTER F;

constexpr int BASES = 8;  // kernels whose shares of a pixel are in registers
constexpr int STRIP = 8;  // channels, or taps, that a thread works on at once
constexpr int SET = WARP / STRIP;  // kernels of a warp in their gradient

struct Geometry {
    int channels, groups, bases, padded;  // C, G, B, and B in whole BASES
    int height, width;                    // of x
    int out_height, out_width;            // of y
    int kernel_h, kernel_w;
    int stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;

    __device__ __forceinline__ int share() const { return channels / groups; }
    __device__ __forceinline__ int taps() const { return kernel_h * kernel_w; }
    __device__ __forceinline__ INDEX pixels() const { return static_cast<INDEX>(height) * width; }
    __device__ __forceinline__ INDEX outputs() const { return static_cast<INDEX>(out_height) * out_width; }
    // The kernels of a channel.
    __device__ __forceinline__ const ACC* of_channel(const ACC* kernels, int channel) const {
        return OWN ? kernels + static_cast<INDEX>(channel) * taps() * padded : kernels;
    }
};

// Filters of a thread's pixels at one tap, whose kernels are there; `further` are the mixtures of its first pixel.
__device__ __forceinline__ void mix(
    ACC (&filter)[PIXELS], const ACC (&mixture)[PIXELS][BASES], const F* further, const ACC* kernel, int rows,
    const Geometry& geo) {
#pragma unroll
    for (int r = 0; r < PIXELS; ++r) filter[r] = 0;
#pragma unroll
    for (int b = 0; b < BASES; ++b) {
        const ACC value = kernel[b];
#pragma unroll
        for (int r = 0; r < PIXELS; ++r) filter[r] += mixture[r][b] * value;
    }
    for (int b = BASES; b < geo.bases; ++b) {
        const ACC value = kernel[b];
#pragma unroll
        for (int r = 0; r < PIXELS; ++r)
            if (r < rows)
                filter[r] += load(further + b * geo.outputs() + r * static_cast<INDEX>(geo.out_width)) * value;
    }
}

// A whole quotient; nearly always by 1, which is no division.
__device__ __forceinline__ int divided(int a, int b) { return b == 1 ? a : a / b; }

// STRIP consecutive taps: where they look, relative to their window's corner.
struct Taps {
    int dy[STRIP], dx[STRIP], count;

    // From tap number `first` on, which is (i, j); leaves there the one behind them.
    __device__ __forceinline__ Taps(const Geometry& geo, int first, int& i, int& j) {
        count = min(STRIP, geo.taps() - first);
#pragma unroll
        for (int s = 0; s < STRIP; ++s) {
            dy[s] = i * geo.dilation_y;
            dx[s] = j * geo.dilation_x;
            const bool last = j + 1 == geo.kernel_w;
            i += last;
            j = last ? 0 : j + 1;
        }
    }

    // The gradients of a filter at these taps and output pixel (h, w): sums over `channels` of grad_output * x.
    __device__ __forceinline__ void correlate(
        ACC (&sum)[STRIP], const T* grad_output, const T* x, int h, int w, int channels, const Geometry& geo) const {
        const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
        INDEX offset[STRIP];
        unsigned inside = 0;  // bit j: tap j lies in the image
#pragma unroll
        for (int j = 0; j < STRIP; ++j) {
            const int row = h * geo.stride_y - geo.pad_y + dy[j], column = w * geo.stride_x - geo.pad_x + dx[j];
            if (j < count && row >= 0 && row < geo.height && column >= 0 && column < geo.width) inside |= 1u << j;
            offset[j] = static_cast<INDEX>(row) * geo.width + column;
            sum[j] = 0;
        }
        for (int c = 0; c < channels; ++c) {
            const ACC gradient = load(grad_output + c * geo.outputs() + p);
#pragma unroll
            for (int j = 0; j < STRIP; ++j) {
                const ACC value = inside >> j & 1u ? load(x + c * geo.pixels() + offset[j]) : ACC(0);
                sum[j] += gradient * value;
            }
        }
    }
};

// The kernels. `items` counts threads, except in mixed_grad_kernels: warps.

extern "C" __global__ void __launch_bounds__(128, 2) mixed_forward(
    const T* __restrict__ x, const ACC* __restrict__ kernels, const F* __restrict__ mixture, T* __restrict__ y,
    INDEX items, int channels, int groups, int bases, int padded, int height, int width, int out_height, int out_width,
    int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, groups, bases, padded, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int w = static_cast<int>(take(flat, out_width));
    const int h = PIXELS * static_cast<int>(take(flat, (out_height + PIXELS - 1) / PIXELS));
    const int first = STRIP * static_cast<int>(take(flat, (geo.share() + STRIP - 1) / STRIP));
    const int count = min(STRIP, geo.share() - first), rows = min(PIXELS, out_height - h);
    const INDEX channel = flat * geo.share() + first;  // n * channels + c; flat is now n * groups + g
    const INDEX pixel = static_cast<INDEX>(h) * out_width + w;
    mixture += flat * bases * geo.outputs() + pixel;
    kernels = geo.of_channel(kernels, static_cast<int>(channel % channels));
    x += channel * geo.pixels();
    y += channel * geo.outputs() + pixel;

    ACC own[PIXELS][BASES];
#pragma unroll
    for (int r = 0; r < PIXELS; ++r)
#pragma unroll
        for (int b = 0; b < BASES; ++b)
            own[r][b] =
                r < rows && b < bases ? load(mixture + b * geo.outputs() + r * static_cast<INDEX>(out_width)) : ACC(0);
    ACC sum[STRIP][PIXELS] = {};
    for (int i = 0; i < kernel_h; ++i) {
        for (int j = 0; j < kernel_w; ++j) {
            const int column = w * stride_x - pad_x + j * dilation_x;
            INDEX offset[PIXELS];
            bool inside[PIXELS];
#pragma unroll
            for (int r = 0; r < PIXELS; ++r) {
                const int row = (h + r) * stride_y - pad_y + i * dilation_y;
                inside[r] = r < rows && row >= 0 && row < height && column >= 0 && column < width;
                offset[r] = static_cast<INDEX>(row) * width + column;
            }
            const ACC* kernel = kernels + static_cast<INDEX>(i * kernel_w + j) * padded;
            ACC filter[PIXELS];
            if (!OWN) mix(filter, own, mixture, kernel, rows, geo);
#pragma unroll
            for (int c = 0; c < STRIP; ++c) {
                if (c >= count) continue;
                if (OWN) mix(filter, own, mixture, geo.of_channel(kernel, c), rows, geo);
#pragma unroll
                for (int r = 0; r < PIXELS; ++r) {
                    const ACC value = inside[r] ? load(x + c * geo.pixels() + offset[r]) : ACC(0);
                    sum[c][r] += filter[r] * value;
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < STRIP; ++c)
#pragma unroll
        for (int r = 0; r < PIXELS; ++r)
            if (c < count && r < rows) store(y + c * geo.outputs() + r * static_cast<INDEX>(out_width), sum[c][r]);
}

extern "C" __global__ void __launch_bounds__(128, 2) mixed_grad_x(
    const T* __restrict__ grad_output, const ACC* __restrict__ kernels, const F* __restrict__ mixture,
    T* __restrict__ grad_x, INDEX items, int channels, int groups, int bases, int padded, int height, int width,
    int out_height, int out_width, int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y,
    int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, groups, bases, padded, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int column = static_cast<int>(take(flat, width));
    const int row = PIXELS * static_cast<int>(take(flat, (height + PIXELS - 1) / PIXELS));
    const int first = STRIP * static_cast<int>(take(flat, (geo.share() + STRIP - 1) / STRIP));
    const int count = min(STRIP, geo.share() - first), rows = min(PIXELS, height - row);
    const INDEX channel = flat * geo.share() + first;
    mixture += flat * bases * geo.outputs();
    kernels = geo.of_channel(kernels, static_cast<int>(channel % channels));
    grad_output += channel * geo.outputs();
    grad_x += channel * geo.pixels() + static_cast<INDEX>(row) * width + column;

    ACC sum[STRIP][PIXELS] = {};
    for (int i = 0; i < kernel_h; ++i) {
        INDEX line[PIXELS];  // of outputs that read the pixels with this row of taps; -1 where there is none
#pragma unroll
        for (int r = 0; r < PIXELS; ++r) {
            const int scaled = row + r + pad_y - i * dilation_y, h = divided(scaled, stride_y);
            const bool exists = r < rows && scaled >= 0 && h * stride_y == scaled && h < out_height;
            line[r] = exists ? static_cast<INDEX>(h) * out_width : INDEX(-1);
        }
        for (int j = 0; j < kernel_w; ++j) {
            const int scaled = column + pad_x - j * dilation_x, w = divided(scaled, stride_x);
            if (scaled < 0 || w * stride_x != scaled || w >= out_width) continue;
            const ACC* kernel = kernels + static_cast<INDEX>(i * kernel_w + j) * padded;
            ACC filter[PIXELS];
#pragma unroll
            for (int c = 0; c < STRIP; ++c) {
                if (c >= count) continue;
                if (OWN || c == 0) {
                    const ACC* values = geo.of_channel(kernel, c);
#pragma unroll
                    for (int r = 0; r < PIXELS; ++r) filter[r] = 0;
                    for (int b = 0; b < bases; ++b) {
                        const ACC value = values[b];
#pragma unroll
                        for (int r = 0; r < PIXELS; ++r)
                            if (line[r] >= 0) filter[r] += load(mixture + b * geo.outputs() + line[r] + w) * value;
                    }
                }
#pragma unroll
                for (int r = 0; r < PIXELS; ++r)
                    if (line[r] >= 0) sum[c][r] += filter[r] * load(grad_output + c * geo.outputs() + line[r] + w);
            }
        }
    }
#pragma unroll
    for (int c = 0; c < STRIP; ++c)
#pragma unroll
        for (int r = 0; r < PIXELS; ++r)
            if (c < count && r < rows) store(grad_x + c * geo.pixels() + r * static_cast<INDEX>(width), sum[c][r]);
}

// A thread takes one output pixel and BASES kernels.
extern "C" __global__ void __launch_bounds__(128, 3) mixed_grad_mixture(
    const T* __restrict__ grad_output, const T* __restrict__ x, const ACC* __restrict__ kernels,
    F* __restrict__ grad_mixture, INDEX items, int channels, int groups, int bases, int padded, int height, int width,
    int out_height, int out_width, int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y,
    int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, groups, bases, padded, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int w = static_cast<int>(take(flat, out_width)), h = static_cast<int>(take(flat, out_height));
    const int first = BASES * static_cast<int>(take(flat, padded / BASES));
    const INDEX channel = flat * geo.share();  // of the group's first one
    const int several = OWN ? geo.share() : 1, together = OWN ? 1 : geo.share();
    kernels = geo.of_channel(kernels, static_cast<int>(channel % channels)) + first;
    grad_output += channel * geo.outputs();
    x += channel * geo.pixels();

    ACC total[BASES] = {};
    int i = 0, j = 0;
    for (int tap = 0; tap < geo.taps(); tap += STRIP) {
        const Taps taps(geo, tap, i, j);
        for (int c = 0; c < several; ++c) {
            ACC sum[STRIP];
            taps.correlate(sum, grad_output + c * geo.outputs(), x + c * geo.pixels(), h, w, together, geo);
            const ACC* kernel = geo.of_channel(kernels, c) + static_cast<INDEX>(tap) * padded;
#pragma unroll
            for (int s = 0; s < STRIP; ++s) {
                if (s >= taps.count) continue;
#pragma unroll
                for (int b = 0; b < BASES; ++b) total[b] += sum[s] * kernel[s * padded + b];
            }
        }
    }
    F* target = grad_mixture + (flat * bases + first) * geo.outputs() + static_cast<INDEX>(h) * out_width + w;
#pragma unroll
    for (int b = 0; b < BASES; ++b)
        if (first + b < bases) store(target + b * geo.outputs(), total[b]);
}

// partial[slot, b, k, tap]: one slot's part of the sum over outputs. A warp takes STRIP taps and SET kernels.
extern "C" __global__ void __launch_bounds__(128, 2) mixed_grad_kernels(
    const T* __restrict__ grad_output, const T* __restrict__ x, const F* __restrict__ mixture,
    ACC* __restrict__ partial, INDEX items, INDEX count, int slots, int channels, int groups, int bases, int padded,
    int height, int width, int out_height, int out_width, int kernel_h, int kernel_w, int stride_y, int stride_x,
    int dilation_y, int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, groups, bases, padded, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    INDEX rest = thread_index() / WARP;
    if (rest >= items) return;  // whole warps
    const int lane = threadIdx.x % WARP, several = OWN ? channels : 1;
    const int tap = STRIP * static_cast<int>(take(rest, (geo.taps() + STRIP - 1) / STRIP));
    const int first = SET * static_cast<int>(take(rest, (bases + SET - 1) / SET));
    const int own = static_cast<int>(take(rest, several));
    const INDEX each = (count + slots - 1) / slots, end = min(count, (rest + 1) * each);
    int i = tap / kernel_w, j = tap - i * kernel_w;
    const Taps taps(geo, tap, i, j);
    INDEX image = rest * each + lane;  // of all images; and where all channels share kernels, of all groups
    int w = static_cast<int>(take(image, out_width)), h = static_cast<int>(take(image, out_height));

    ACC total[WARP] = {};
    for (INDEX at = rest * each + lane; at < end; at += WARP) {
        const INDEX group = OWN ? image * groups + own / geo.share() : image;
        const INDEX channel = OWN ? image * channels + own : image * geo.share();
        ACC sum[STRIP];
        taps.correlate(sum, grad_output + channel * geo.outputs(), x + channel * geo.pixels(), h, w,
                       OWN ? 1 : geo.share(), geo);
        const INDEX p = static_cast<INDEX>(h) * out_width + w;
        const F* mixtures = mixture + (group * bases + first) * geo.outputs() + p;
#pragma unroll
        for (int b = 0; b < SET; ++b) {
            if (first + b >= bases) continue;
            const ACC value = load(mixtures + b * geo.outputs());
#pragma unroll
            for (int s = 0; s < STRIP; ++s) total[b * STRIP + s] += value * sum[s];
        }
        // The lane's next output: without a division, which would cost as much as the sums.
        for (w += WARP; w >= out_width; w -= out_width) {
            h = h + 1 == out_height ? 0 : h + 1;
            image += h == 0;
        }
    }
    lane_totals(total);
    const int b = first + lane / STRIP, own_tap = tap + lane % STRIP;
    if (b < bases && own_tap < geo.taps())
        partial[((rest * bases + b) * several + own) * geo.taps() + own_tap] = total[0];
}

extern "C" __global__ void __launch_bounds__(128, 4) mixed_sum_slots(
    const ACC* __restrict__ partial, ACC* __restrict__ total, INDEX count, int slots) {
    sum_slots(partial, total, count, slots);
}
