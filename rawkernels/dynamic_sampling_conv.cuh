#pragma once
// dynamic_conv2d. Every weight is used once: reading it, or writing its gradient, is the bound. Included by
// dynamic_sampling.cu, whose names it uses.

// The sum of `count` terms, in parts of SUMMED.
template <class Term>
__device__ __forceinline__ ACC in_parts(int count, Term term) {
    ACC sum = 0;
    for (int first = 0; first < count; first += SUMMED) {
        const int end = min(first + SUMMED, count);
        ACC part = 0;
#pragma unroll 4
        for (int k = first; k < end; ++k) part += term(k);
        sum += part;
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(128, 4) dynamic_sampling_conv_forward(
    const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y,
    INDEX items, int channels, int outputs, int height, int width, int out_height, int out_width, int kernel_h,
    int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w};
    const INDEX x_plane = geo.x_plane(), y_plane = geo.y_plane();
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
            const INDEX at = geo.pixel(row, column);
            const T* of_tap = weight + (a * kernel_w + b) * y_plane;
            sum += in_parts(channels, [&](int c) {
                return load(of_tap + c * taps * y_plane) * at_or_zero(x + c * x_plane, at);
            });
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
    const Geometry geo = {channels, outputs, height, width, out_height, out_width, kernel_h, kernel_w};
    const INDEX x_plane = geo.x_plane(), y_plane = geo.y_plane();
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
            const INDEX at = geo.pixel(row, column);
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
        const int h = reader(row, a * dilation_y - pad_y, stride_y, out_height);
        for (int b = 0; b < kernel_w; ++b) {
            const int w = reader(column, b * dilation_x - pad_x, stride_x, out_width);
            if (h < 0 || w < 0) continue;
            const INDEX p = static_cast<INDEX>(h) * out_width + w;
            const T* of_tap = weight + (a * kernel_w + b) * y_plane + p;
            sum += in_parts(outputs, [&](int o) {
                return load(grad_output + o * y_plane + p) *
                       load(of_tap + static_cast<INDEX>(o) * channels * taps * y_plane);
            });
        }
    }
    store(grad, sum);
}
