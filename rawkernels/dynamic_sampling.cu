// dynamic_sampling: a kernel for every output pixel, whole (conv) or in two factors over sampled regions (sampling).
//
//   conv      x (N,C,H,W)  weight (N,O,C,kh,kw,Ho,Wo)  y (N,O,Ho,Wo):  y[o,p] = sum over (c,a,b) of weight * x
//   sampling  channel_kernel U (N,O,C,Ho,Wo)  spatial_kernel V (N,O,kh,kw,Ho,Wo)
//             sample_attention (N,O,S,S,Ho,Wo) and position_attention (N,O,kh,kw,H,W), or absent
//             z[s,o,p] = As[o,s,p] * (Ap[o,centre,q] * sum_c U[o,c,p] x[c,q] + sum_ab V'[o,a,b,p] Ap[o,a,b,q] X1(q + ab))
//
// Here q = p * stride + offset of sample s, X1 is the sum of x over channels, made once by channel_sum, and V' is V with
// kernel_residual / C added to the centre. y is the sum, the maximum or the stack of z over the S*S samples.
//
// Without attention and with "sum" the samples of a region become one, of the box sums of x: two sums along an axis
// (axis_sum) on an image with a margin for the taps, then everything else with S = 1.
//
// How work is laid out. Consecutive threads take consecutive w. In the forward pass a thread makes one pixel of OUTPUTS
// output channels and keeps the sums over channels of TILE samples for each in registers: a value of U serves TILE
// multiply-adds, a value of x OUTPUTS of them. Sums over samples and output channels in gradients are gathers; nothing
// is atomic: equal inputs, equal bits.
//
// Costs per output and pixel of the forward pass, float32, k = 3, C channels:
//   memory      4 (C + 9) bytes of U and V, 4 S^2 of As, 36 of Ap; x comes from the caches
//   arithmetic  S^2 (C + 9) multiply-adds (whole kernels would take 9 S^2 C), 18 S^2 more multiplications with Ap
//   loads       ceil(S^2 / TILE) C of U, S^2 C / OUTPUTS of x, some 27 S^2 in what follows the sum over channels
// With S = 1 memory is the bound: an H200 (4.8 TB/s; 132 SMs of 128 lanes at 1.8 GHz) takes 114 ps for the 548 bytes of
// C = 128 and 5 ps for the arithmetic. At S = 9 arithmetic and loads are: 11097 multiply-adds take 365 ps, about as long
// as the loads from L1. Not measured: see benchmarks/results for what has been.
//
// Outside the image x is 0, and that zero takes part in products: an infinite kernel value there gives NaN. Of infinities
// the factors and box sums may make NaN where whole kernels give infinities, or the other way round: what is not finite
// is summed up again whole (dynamic_sampling_whole.cuh). What is finite in factors is finite whole.
//
// Constants from the Python side (dynamic_sampling.py explains the choice):
//   OUTPUTS  output channels of a thread in the forward pass;  TILE  samples that it keeps sums of
//   FUSE     0: sum, 1: max, 2: stack
#ifndef FUSE
#define OUTPUTS 4
#define TILE 8
#define FUSE 0
#endif
#include "common.cuh"

constexpr int STRIP = 8;  // channels or taps of a thread in the gradients

struct Geometry {
    int channels, outputs;
    int height, width;          // of x
    int out_height, out_width;  // of y
    int kernel_h, kernel_w, samples;
    int sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x;
    int lead_y, lead_x;  // from the first pixel of x to that on which the samples of the first output are centred
    ACC kernel_residual, attention_residual;  // 1/C and 1, or 0

    __device__ __forceinline__ INDEX x_plane() const { return static_cast<INDEX>(height) * width; }
    __device__ __forceinline__ INDEX y_plane() const { return static_cast<INDEX>(out_height) * out_width; }
    __device__ __forceinline__ int taps() const { return kernel_h * kernel_w; }
    __device__ __forceinline__ int centre() const { return (kernel_h * kernel_w) / 2; }
    __device__ __forceinline__ int regions() const { return samples * samples; }
    // From an output times the stride to the centre of sampled region s.
    __device__ __forceinline__ int offset_y(int s) const { return (s / samples - (samples - 1) / 2) * sample_y + lead_y; }
    __device__ __forceinline__ int offset_x(int s) const { return (s % samples - (samples - 1) / 2) * sample_x + lead_x; }
    // From the centre of a region to tap t.
    __device__ __forceinline__ int tap_y(int t) const { return (t / kernel_w - kernel_h / 2) * dilation_y; }
    __device__ __forceinline__ int tap_x(int t) const { return (t % kernel_w - kernel_w / 2) * dilation_x; }
    // That of the image from which box sums were made; those have a margin of `lead`.
    __device__ __forceinline__ Geometry of_plain(int plain_samples) const {
        Geometry plain = *this;
        plain.height -= 2 * lead_y;
        plain.width -= 2 * lead_x;
        plain.lead_y = plain.lead_x = 0;
        plain.samples = plain_samples;
        return plain;
    }
    __device__ __forceinline__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
    // Offset of a pixel of x in its plane, or -1 outside.
    __device__ __forceinline__ INDEX pixel(int y, int x) const {
        return inside(y, x) ? static_cast<INDEX>(y) * width + x : INDEX(-1);
    }
    // The output coordinate whose region lies `offset` away with its centre at `at`, or -1.
    __device__ __forceinline__ static int reader(int at, int offset, int stride, int count) {
        const int scaled = at - offset;
        return scaled < 0 || scaled % stride != 0 || scaled / stride >= count ? -1 : scaled / stride;
    }
};

struct Arrays {
    const T *x, *channel_kernel, *spatial_kernel, *sample_attention, *position_attention;
    const ACC* total;  // X1, (N,H,W)
};

// What box sums are made of: x itself, and how many samples a region has. Else those of Arrays and Geometry.
struct Plain {
    const T* x;
    int samples;
};

__device__ __forceinline__ ACC at_or_zero(const T* plane, INDEX at) {
    return at >= 0 ? load(plane + at) : ACC(0);
}

__device__ __forceinline__ ACC total_at(const Arrays& in, INDEX n, int y, int x, const Geometry& geo) {
    const INDEX at = geo.pixel(y, x);
    return at >= 0 ? in.total[n * geo.x_plane() + at] : ACC(0);
}

// As of sample s, for one output channel (no = n * outputs + o) and pixel p.
__device__ __forceinline__ ACC by_sample(const Arrays& in, INDEX no, int s, INDEX p, const Geometry& geo) {
    if (!in.sample_attention) return ACC(1);
    return load(in.sample_attention + (no * geo.regions() + s) * geo.y_plane() + p) + geo.attention_residual;
}

// Ap of tap t where a region is centred on `at` (-1: outside the image).
__device__ __forceinline__ ACC by_position(const Arrays& in, INDEX no, int t, INDEX at, const Geometry& geo) {
    if (!in.position_attention) return ACC(1);
    return at_or_zero(in.position_attention + (no * geo.taps() + t) * geo.x_plane(), at) + geo.attention_residual;
}

// V', the spatial kernel with the residual on its centre.
__device__ __forceinline__ ACC tap_weight(const Arrays& in, INDEX no, int t, INDEX p, const Geometry& geo) {
    const ACC value = load(in.spatial_kernel + (no * geo.taps() + t) * geo.y_plane() + p);
    return t == geo.centre() ? value + geo.kernel_residual : value;
}

// TILE regions, from sample `first`, under the kernels of `count` output channels.
__device__ __forceinline__ void sum_regions(
    ACC (&value)[OUTPUTS][TILE], const Arrays& in, INDEX n, INDEX no, int count, int first, int h, int w, INDEX p,
    const Geometry& geo) {
    int y[TILE], x[TILE];
#pragma unroll
    for (int k = 0; k < TILE; ++k) {
        const int s = min(first + k, geo.regions() - 1);
        y[k] = h * geo.stride_y + geo.offset_y(s);
        x[k] = w * geo.stride_x + geo.offset_x(s);
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) value[o][k] = 0;
    }
    const T* pixels = in.x + n * geo.channels * geo.x_plane();
    const T* kernel = in.channel_kernel + no * geo.channels * geo.y_plane() + p;
    for (int c = 0; c < geo.channels; ++c) {
        ACC factor[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o)
            factor[o] = o < count ? load(kernel + (static_cast<INDEX>(o) * geo.channels + c) * geo.y_plane()) : ACC(0);
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            const ACC pixel = at_or_zero(pixels, geo.pixel(y[k], x[k]));
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) value[o][k] += factor[o] * pixel;
        }
        pixels += geo.x_plane();
    }
    if (in.position_attention) {
#pragma unroll
        for (int k = 0; k < TILE; ++k)
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o)
                if (o < count) value[o][k] *= by_position(in, no + o, geo.centre(), geo.pixel(y[k], x[k]), geo);
    }
    for (int t = 0; t < geo.taps(); ++t) {
        ACC factor[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) factor[o] = o < count ? tap_weight(in, no + o, t, p, geo) : ACC(0);
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            const ACC seen = total_at(in, n, y[k] + geo.tap_y(t), x[k] + geo.tap_x(t), geo);
            const INDEX at = geo.pixel(y[k], x[k]);
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o)
                if (o < count) value[o][k] += factor[o] * by_position(in, no + o, t, at, geo) * seen;
        }
    }
}

// One thread's pixel and first output channel; false beyond the last item.
struct Place {
    INDEX n, no, p;
    int h, w, count;

    __device__ __forceinline__ bool find(INDEX items, const Geometry& geo) {
        INDEX flat = thread_index();
        if (flat >= items) return false;
        w = take(flat, geo.out_width);
        h = take(flat, geo.out_height);
        const int first = OUTPUTS * take(flat, (geo.outputs + OUTPUTS - 1) / OUTPUTS);
        n = flat;
        no = n * geo.outputs + first;
        p = static_cast<INDEX>(h) * geo.out_width + w;
        count = min(OUTPUTS, geo.outputs - first);
        return true;
    }
};

// The weight that sample s of an output has in the gradients: grad_output * As.
__device__ __forceinline__ ACC sample_weight(
    const T* __restrict__ grad_output, const Arrays& in, INDEX n, INDEX no, int s, INDEX p, const Geometry& geo) {
#if FUSE == 2
    const INDEX stacked = (n * geo.regions() + s) * geo.outputs + (no - n * geo.outputs);
    return load(grad_output + stacked * geo.y_plane() + p) * by_sample(in, no, s, p, geo);
#else
    return load(grad_output + no * geo.y_plane() + p) * by_sample(in, no, s, p, geo);
#endif
}

// Whether sample s has a part in an output.
__device__ __forceinline__ bool takes_part(const int* __restrict__ largest, INDEX no, int s, INDEX p, INDEX y_plane) {
#if FUSE == 1
    return largest[no * y_plane + p] == s;
#else
    return true;
#endif
}

#include "dynamic_sampling_whole.cuh"

#include "dynamic_sampling_grad.cuh"

// The kernels. `items` counts threads.

// X1: the sum of x over channels.
extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_channel_sum(
    const T* __restrict__ x, ACC* __restrict__ total, INDEX items, int channels, INDEX plane) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    ACC* target = total + flat;
    const INDEX at = take(flat, plane);
    x += flat * channels * plane + at;
    ACC sum = 0;
    for (int c = 0; c < channels; ++c) sum += load(x + c * plane);
    *target = sum;
}

// Sums along one axis: in (., length, inner), out (., out_length, inner): out[k] = sum over i of in[k + base + i * step].
// Twice it makes box sums with steps of their own, of which x is zero outside; with a negative step it is their adjoint.
extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_axis_sum(
    const T* __restrict__ in, T* __restrict__ out, INDEX items, int length, int out_length, int inner, int base, int step,
    int count) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    out += flat;
    const int column = take(flat, inner), start = take(flat, out_length) + base;
    in += flat * length * inner + column;
    ACC sum = 0;
    for (int i = 0; i < count; ++i) {
        const int at = start + i * step;
        if (at >= 0 && at < length) sum += load(in + static_cast<INDEX>(at) * inner);
    }
    store(out, sum);
}

extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_forward(
    const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    T* __restrict__ y, int* __restrict__ largest, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    fuse_regions(in, {plain, plain_samples}, y, largest, items, geo);
}

extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_grad_channel_kernel(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    T* __restrict__ grad, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    channel_kernel_gradient(grad_output, largest, in, {plain, plain_samples}, grad, items, geo);
}

extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_grad_spatial_kernel(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const T* __restrict__ plain, int plain_samples,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    T* __restrict__ grad, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    spatial_kernel_gradient(grad_output, largest, in, {plain, plain_samples}, grad, items, geo);
}

extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_grad_sample_attention(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    T* __restrict__ grad, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    sample_attention_gradient(grad_output, largest, in, grad, items, geo);
}

extern "C" __global__ void __launch_bounds__(128, 2) dynamic_sampling_grad_position_attention(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    T* __restrict__ grad, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    position_attention_gradient(grad_output, largest, in, grad, items, geo);
}

extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_grad_total(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    ACC* __restrict__ partial, int slots, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    total_gradient(grad_output, largest, in, partial, items, slots, geo);
}

extern "C" __global__ void __launch_bounds__(128, 3) dynamic_sampling_grad_x(
    const T* __restrict__ grad_output, const int* __restrict__ largest,
    const T* __restrict__ x, const T* __restrict__ channel_kernel, const T* __restrict__ spatial_kernel,
    const T* __restrict__ sample_attention, const T* __restrict__ position_attention, const ACC* __restrict__ total,
    const ACC* __restrict__ partial, int slots, T* __restrict__ grad, INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int samples, int sample_y, int sample_x, int dilation_y, int dilation_x, int stride_y, int stride_x,
    int lead_y, int lead_x, ACC kernel_residual, ACC attention_residual) {
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w, samples,
                          sample_y, sample_x, dilation_y, dilation_x, stride_y, stride_x, lead_y,
                          lead_x, kernel_residual, attention_residual};
    const Arrays in = {x, channel_kernel, spatial_kernel, sample_attention, position_attention, total};
    x_gradient(grad_output, largest, in, partial, grad, items, slots, geo);
}

// dynamic_conv2d. Every weight is used once: reading it, or writing its gradient, is the bound.

extern "C" __global__ void __launch_bounds__(128, 4) dynamic_sampling_conv_forward(
    const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y,
    INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const INDEX x_plane = static_cast<INDEX>(height) * width, y_plane = static_cast<INDEX>(out_height) * out_width;
    y += flat;
    const INDEX p = flat % y_plane;
    const int w = take(flat, out_width), h = take(flat, out_height);
    const int taps = kernel_h * kernel_w;
    weight += flat * channels * taps * y_plane + p;  // flat is now n * outputs + o
    x += flat / outputs * channels * x_plane;
    ACC sum = 0;
    for (int a = 0; a < kernel_h; ++a) {
        const int row = h * stride_y - pad_y + a * dilation_y;
        for (int b = 0; b < kernel_w; ++b) {
            const int column = w * stride_x - pad_x + b * dilation_x;
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            const INDEX at = inside ? static_cast<INDEX>(row) * width + column : INDEX(-1);
            const T* of_tap = weight + (a * kernel_w + b) * y_plane;
#pragma unroll 4
            for (int c = 0; c < channels; ++c)
                sum += load(of_tap + c * taps * y_plane) * at_or_zero(x + c * x_plane, at);
        }
    }
    store(y, sum);
}

// A thread makes the gradients of all taps of one channel.
extern "C" __global__ void __launch_bounds__(128, 4) dynamic_sampling_conv_grad_weight(
    const T* __restrict__ grad_output, const T* __restrict__ x, T* __restrict__ grad,
    INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const INDEX x_plane = static_cast<INDEX>(height) * width, y_plane = static_cast<INDEX>(out_height) * out_width;
    const INDEX p = flat % y_plane;
    const int w = take(flat, out_width), h = take(flat, out_height);
    const int taps = kernel_h * kernel_w;
    grad += flat * taps * y_plane + p;  // flat is now (n * outputs + o) * channels + c
    const int c = take(flat, channels);
    const ACC gradient = load(grad_output + flat * y_plane + p);
    x += (flat / outputs * channels + c) * x_plane;
    for (int a = 0; a < kernel_h; ++a) {
        const int row = h * stride_y - pad_y + a * dilation_y;
        for (int b = 0; b < kernel_w; ++b) {
            const int column = w * stride_x - pad_x + b * dilation_x;
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            const INDEX at = inside ? static_cast<INDEX>(row) * width + column : INDEX(-1);
            store(grad + (a * kernel_w + b) * y_plane, gradient * at_or_zero(x, at));
        }
    }
}

// Tap (a, b) connects row y of x with row (y + pad - a*d)/s of y, if that division leaves no remainder.
extern "C" __global__ void __launch_bounds__(128, 4) dynamic_sampling_conv_grad_x(
    const T* __restrict__ grad_output, const T* __restrict__ weight, T* __restrict__ grad,
    INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    grad += flat;
    const INDEX y_plane = static_cast<INDEX>(out_height) * out_width;
    const int column = take(flat, width), row = take(flat, height), c = take(flat, channels);
    const int taps = kernel_h * kernel_w;
    grad_output += flat * outputs * y_plane;  // flat is now n
    weight += (flat * outputs * channels + c) * taps * y_plane;
    ACC sum = 0;
    for (int a = 0; a < kernel_h; ++a) {
        const int h = Geometry::reader(row, a * dilation_y - pad_y, stride_y, out_height);
        for (int b = 0; b < kernel_w; ++b) {
            const int w = Geometry::reader(column, b * dilation_x - pad_x, stride_x, out_width);
            if (h < 0 || w < 0) continue;
            const INDEX p = static_cast<INDEX>(h) * out_width + w;
            const T* of_tap = weight + (a * kernel_w + b) * y_plane + p;
#pragma unroll 4
            for (int o = 0; o < outputs; ++o)
                sum += load(grad_output + o * y_plane + p) *
                       load(of_tap + static_cast<INDEX>(o) * channels * taps * y_plane);
        }
    }
    store(grad, sum);
}
