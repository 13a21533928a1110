// local_filter: one filter per output pixel, shared by the channels of a group. Forward and three gradients.
//
//   x (N,C,H,W)  weight (N,G,kh,kw,Ho,Wo)  channel_weight (N,u,u,C,kh,kw) or absent  y (N,C,Ho,Wo)
//   channel_weight and its gradient are in the accumulator type, the others in T but for weight (FILTER below)
//   y[n,c,p] = sum over taps (a,b) of (weight[n,g(c),a,b,p] o channel_weight[n,phase(p),c,a,b]) * x[n,c,q]
//   q = ((h/u)*s_y - pad_y + a*d_y, (w/u)*s_x - pad_x + b*d_x),  phase(p) = (h%u, w%u),  o is * or +
//
// How work is laid out. Consecutive threads take consecutive w, so that loads and stores of a warp touch
// adjacent addresses; the grid is one-dimensional and a thread splits its flat index into (n, g, chunk of
// channels, block of ROWS rows, w). A thread reads the filter values of its ROWS pixels once, keeps them in
// registers, and applies them to its chunk of channels. Rows of one thread share their x values
// (ROW_SHIFT 1: the windows slide by one row; 0: upsampling, the windows coincide).
//
// Costs per output element of the forward pass at k = 3, stride 1, "mul", float32, with c = C/G channels per filter.
// A thread makes 4 rows; counted in the loop over channels of the PTX for warps inside the image:
//   memory        8 bytes: x once (halo rows come from the caches), y once; and 36/c bytes of weight
//   loads         6.75 = (18 of x + 9 of channel_weight) / 4
//   arithmetic    9 multiplications, 9 multiply-adds
//   instructions  30.5 in all; some 45 near the border, where each load asks whether it is inside
// An H200 (4.8 TB/s; 132 SMs, each 128 lanes and one 128-byte request to L1 a cycle, at 1.8 GHz) needs 1.7 ps for
// the bytes, 1.0 ps for the instructions and 0.9 ps for the requests: in this count memory is the bound, by a margin
// that the row blocking makes (one row a thread: 18 loads, 2.4 ps). What waiting adds, `python -m benchmarks kernels`
// estimates. k = 5 (27.5 loads, 25 + 25 operations) and k = 7 (98 loads,
// 49 + 49) are bound by instructions and L1. In 16 bits the bytes halve and the rest does not: memory and
// instructions then take about the same. The gradient of x is the same loop on other arrays; the gradients of
// weight and channel_weight read 8 bytes and do 9 multiplications and 9 multiply-adds for each element of y.
//
// Registers: 36 filter values and the loads in flight fill the 128 that the launch bounds allow, so that 4 blocks of
// 128 threads share an SM: 16 warps of 64, each with some 20 independent loads in a row. tests/registers.json has all
// counts; nothing spills.
//
// Outside the image x is 0, and that zero takes part in products: an infinite filter value there gives NaN.
// The gradient of x sums over existing output pixels only. No kernel uses atomics: equal inputs, equal bits.
//
// Constants from the Python side (local_filter.py explains the choice):
//   FILTER      type of weight: SCALAR, or float beside 16 bits
//   KH, KW      kernel size, or 0: any size, known at run time (the *_any_size functions)
//   COMBINE     0: no channel_weight, 1: "mul", 2: "add"
//   UNIT_STEPS  1: stride and dilation are 1
//   UPSAMPLED   1: u > 1
//   ROWS        output rows of a thread;  BASE_ROWS  the same in the gradient of channel_weight
//   ROW_SHIFT   see above;  SET  channels of a warp in the gradient of channel_weight
//   MIN_BLOCKS  blocks of 128 threads that must fit on an SM, which limits registers: 4 leave 128 a thread, 3 168;
//               MIN_BLOCKS_GRAD  the same for the gradients of weight and channel_weight, which keep more sums
#ifndef KH
#define KH 3
#define KW 3
#define COMBINE 1
#define UNIT_STEPS 1
#define UPSAMPLED 0
#define ROWS 4
#define ROW_SHIFT 1
#define BASE_ROWS 2
#define SET 2
#define MIN_BLOCKS 4
#define MIN_BLOCKS_GRAD 3
#endif
#include "common.cuh"
#include "sums.cuh"
#ifndef FILTER
#define FILTER SCALAR
#endif

typedef FILTER F;

struct Geometry {
    int channels, groups;
    int height, width;          // of x
    int out_height, out_width;  // of y
    int kernel_h, kernel_w;
    int stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    int upsample;
};

constexpr int STRIP = 8;  // taps or channels that a thread of the any-size functions works on at once

// filter o channel_weight
__device__ __forceinline__ ACC combined(ACC filter, const ACC* channel_weight) {
#if COMBINE == 0
    return filter;
#elif COMBINE == 1
    return filter * *channel_weight;
#else
    return filter + *channel_weight;
#endif
}

// What d y / d filter leaves of channel_weight.
__device__ __forceinline__ ACC filter_factor(const ACC* channel_weight) {
#if COMBINE == 1
    return *channel_weight;
#else
    return ACC(1);
#endif
}

// Add up count values of every thread over threadIdx.y, in order of threadIdx.y, and hand each total to
// write(index, total) once. A block has threads along x and y only; shared memory holds STRIP values a thread.
template <int COUNT, class Write>
__device__ __forceinline__ void sum_over_y(const ACC (&value)[COUNT], Write write) {
    extern __shared__ ACC partial[];
    const int threads = blockDim.x * blockDim.y;
#pragma unroll
    for (int first = 0; first < COUNT; first += STRIP) {
#pragma unroll
        for (int s = 0; s < STRIP; ++s)
            if (first + s < COUNT) partial[s * threads + threadIdx.y * blockDim.x + threadIdx.x] = value[first + s];
        __syncthreads();
        for (int s = threadIdx.y; s < STRIP && first + s < COUNT; s += blockDim.y) {
            ACC total = 0;
            for (int y = 0; y < static_cast<int>(blockDim.y); ++y)
                total += partial[s * threads + y * blockDim.x + threadIdx.x];
            write(first + s, total);
        }
        __syncthreads();
    }
}

#if KH > 0
#include "local_filter_sized.cuh"
#endif
#include "local_filter_any.cuh"

// The kernels. All take the same numbers; `items` counts threads (warps in the gradient of channel_weight).

extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS) local_filter_forward(
    const T* __restrict__ x, const F* __restrict__ weight, const ACC* __restrict__ channel_weight, T* __restrict__ y,
    INDEX items, int chunk, int channels, int groups, int height, int width, int out_height, int out_width,
    int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x,
    int upsample) {
    const Geometry geo = {channels, groups, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x, upsample};
#if KH > 0
    filter_planes<false>(x, weight, channel_weight, y, items, chunk, geo);
#else
    forward_any_size(x, weight, channel_weight, y, items, geo);
#endif
}

extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS) local_filter_grad_x(
    const T* __restrict__ grad_output, const F* __restrict__ weight, const ACC* __restrict__ channel_weight,
    T* __restrict__ grad_x,
    INDEX items, int chunk, int channels, int groups, int height, int width, int out_height, int out_width,
    int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x,
    int upsample) {
    const Geometry geo = {channels, groups, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x, upsample};
#if KH > 0 && !UPSAMPLED
    filter_planes<true>(grad_output, weight, channel_weight, grad_x, items, chunk, geo);
#else
    grad_x_any_size(grad_output, weight, channel_weight, grad_x, items, geo);
#endif
}

extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS_GRAD) local_filter_grad_weight(
    const T* __restrict__ grad_output, const T* __restrict__ x, const ACC* __restrict__ channel_weight,
    F* __restrict__ grad_weight,
    INDEX items, int channels, int groups, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x, int upsample) {
    const Geometry geo = {channels, groups, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x, upsample};
#if KH > 0
    weight_gradient(grad_output, x, channel_weight, grad_weight, items, geo);
#else
    weight_gradient_any_size(grad_output, x, channel_weight, grad_weight, items, geo);
#endif
}

extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS_GRAD) local_filter_grad_channel_weight(
    const T* __restrict__ grad_output, const T* __restrict__ x, const F* __restrict__ weight, ACC* __restrict__ partial,
    INDEX items, int slots, int channels, int groups, int height, int width, int out_height, int out_width,
    int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x,
    int upsample) {
    const Geometry geo = {channels, groups, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x, upsample};
#if KH > 0
    channel_weight_partial(grad_output, x, weight, partial, items, slots, geo);
#else
    channel_weight_partial_any_size(grad_output, x, weight, partial, items, slots, geo);
#endif
}

// Second pass of the gradient of channel_weight: add up the slots in order.
extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS) local_filter_sum_slots(
    const ACC* __restrict__ partial, ACC* __restrict__ total, INDEX count, int slots) {
    sum_slots(partial, total, count, slots);
}
