#pragma once
// dynamic_sampling_conv2d by its definition, with whole kernels, for results that are not finite. Slow, for they are
// rare: no loop is unrolled, which would take registers from the kernels. Included by dynamic_sampling.cu, whose names
// it uses.

__device__ __forceinline__ bool is_finite(ACC value) { return value - value == ACC(0); }

// The output coordinate whose region lies `offset` away with its centre at `at`, or -1.
__device__ __forceinline__ int reader(int at, int offset, int stride, int count) {
    const int scaled = at - offset;
    return scaled < 0 || scaled % stride != 0 || scaled / stride >= count ? -1 : scaled / stride;
}

// The kernel of channel c at tap t.
__device__ __forceinline__ ACC whole_kernel(const Arrays& in, INDEX no, int c, int t, INDEX p, const Geometry& geo) {
    const ACC shared = load(in.spatial_kernel + (no * geo.taps() + t) * geo.y_plane() + p);
    if (t != geo.centre()) return shared;
    return shared + (load(in.channel_kernel + (no * geo.channels + c) * geo.y_plane() + p) + geo.kernel_residual);
}

// What tap t of a region adds to it, before the attention; the region is centred on (y, x).
__device__ __forceinline__ ACC tap_whole(
    const Arrays& in, INDEX n, INDEX no, int t, int y, int x, INDEX p, const Geometry& geo) {
    const INDEX seen = geo.pixel(y + geo.tap_y(t / geo.kernel_w), x + geo.tap_x(t % geo.kernel_w));
    ACC products = 0;
#pragma unroll 1
    for (int c = 0; c < geo.channels; ++c)
        products += at_or_zero(in.x + (n * geo.channels + c) * geo.x_plane(), seen) * whole_kernel(in, no, c, t, p, geo);
    return products;
}

// A region under its kernel.
__device__ __forceinline__ ACC region_whole(
    const Arrays& in, INDEX n, INDEX no, int y, int x, INDEX p, const Geometry& geo) {
    const INDEX at = geo.pixel(y, x);
    ACC sum = 0;
#pragma unroll 1
    for (int t = 0; t < geo.taps(); ++t)
        sum += tap_whole(in, n, no, t, y, x, p, geo) * by_position(in, no, t, at, geo);
    return sum;
}

// Whether a value comes before the largest so far, which it does if it is the first NaN.
__device__ __forceinline__ bool is_larger(ACC value, ACC largest) {
    return value > largest || (value != value && largest == largest);
}

// One output.
__device__ __forceinline__ void fuse_whole(
    const Arrays& in, const Plain& plain, T* __restrict__ y, int* __restrict__ largest, INDEX n, INDEX no, int h, int w,
    INDEX p, const Geometry& boxed) {
    const Geometry geo = boxed.of_plain(plain.samples);
    Arrays whole = in;
    whole.x = plain.x;
    ACC fused = 0;
    int which = 0;
#pragma unroll 1
    for (int s = 0; s < geo.regions(); ++s) {
        const int row = h * geo.stride_y + geo.offset_y(s / geo.samples), column = w * geo.stride_x + geo.offset_x(s % geo.samples);
        const ACC z = region_whole(whole, n, no, row, column, p, geo) * by_sample(in, no, s, p, geo);
        if (FUSE == 0) fused += z;
        if (FUSE == 1 && (s == 0 || is_larger(z, fused))) {
            fused = z;
            which = s;
        }
        if (FUSE == 2) store(y + stacked(n, no, s, geo) + p, z);
    }
    if (FUSE != 2) store(y + no * geo.y_plane() + p, fused);
    if (FUSE == 1) largest[no * geo.y_plane() + p] = which;
}

// Of a call with box sums, where nothing but grad_output weighs samples: the gradient of channel_kernel.
__device__ __forceinline__ ACC boxed_whole(
    ACC weight, const Plain& plain, INDEX n, int c, int h, int w, const Geometry& boxed) {
    const Geometry geo = boxed.of_plain(plain.samples);
    ACC sum = 0;
#pragma unroll 1
    for (int s = 0; s < geo.regions(); ++s) {
        const INDEX at = geo.pixel(h * geo.stride_y + geo.offset_y(s / geo.samples), w * geo.stride_x + geo.offset_x(s % geo.samples));
        sum += weight * at_or_zero(plain.x + (n * geo.channels + c) * geo.x_plane(), at);
    }
    return sum;
}

// The gradient of spatial_kernel at tap t.
__device__ __forceinline__ ACC spatial_kernel_whole(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, const Plain& plain, INDEX n,
    INDEX no, int t, int h, int w, INDEX p, const Geometry& boxed) {
    const Geometry geo = boxed.of_plain(plain.samples);
    ACC sum = 0;
#pragma unroll 1
    for (int s = 0; s < geo.regions(); ++s) {
        if (!takes_part(largest, no, s, p, geo.y_plane())) continue;
        const int y = h * geo.stride_y + geo.offset_y(s / geo.samples), x = w * geo.stride_x + geo.offset_x(s % geo.samples);
        const ACC weight =
            sample_weight(grad_output, in, n, no, s, p, geo) * by_position(in, no, t, geo.pixel(y, x), geo);
        const INDEX seen = geo.pixel(y + geo.tap_y(t / geo.kernel_w), x + geo.tap_x(t % geo.kernel_w));
#pragma unroll 1
        for (int c = 0; c < geo.channels; ++c)
            sum += weight * at_or_zero(plain.x + (n * geo.channels + c) * geo.x_plane(), seen);
    }
    return sum;
}

// The gradient of sample_attention of sample s; `bare` has none.
__device__ __forceinline__ void sample_attention_whole(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& bare, const Plain& plain,
    T* __restrict__ grad, INDEX n, INDEX no, int s, int h, int w, INDEX p, const Geometry& placed) {
    if (!takes_part(largest, no, s, p, placed.y_plane())) return;
    const Geometry geo = placed.of_plain(plain.samples);
    Arrays whole = bare;
    whole.x = plain.x;
    const int row = h * geo.stride_y + geo.offset_y(s / geo.samples);
    const int column = w * geo.stride_x + geo.offset_x(s % geo.samples);
    const ACC weight = sample_weight(grad_output, bare, n, no, s, p, geo);
    store(grad + (no * geo.regions() + s) * geo.y_plane() + p,
          weight * region_whole(whole, n, no, row, column, p, geo));
}

// The gradient of position_attention at tap t, for the regions that are centred on (y, x).
__device__ __forceinline__ ACC position_attention_whole(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, INDEX n, INDEX no, int t,
    int y, int x, const Geometry& geo) {
    ACC sum = 0;
#pragma unroll 1
    for (int s = 0; s < geo.regions(); ++s) {
        const int h = reader(y, geo.offset_y(s / geo.samples), geo.stride_y, geo.out_height);
        const int w = reader(x, geo.offset_x(s % geo.samples), geo.stride_x, geo.out_width);
        const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
        if (h < 0 || w < 0 || !takes_part(largest, no, s, p, geo.y_plane())) continue;
        sum += sample_weight(grad_output, in, n, no, s, p, geo) * tap_whole(in, n, no, t, y, x, p, geo);
    }
    return sum;
}

__device__ __forceinline__ void position_attention_again(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, T* __restrict__ grad, INDEX n,
    INDEX no, int t, int y, int x, const Geometry& geo) {
    const INDEX at = geo.pixel(y, x);
    if (at < 0) return;
    store(grad + (no * geo.taps() + t) * geo.x_plane() + at,
          position_attention_whole(grad_output, largest, in, n, no, t, y, x, geo));
}

// The gradient of x at (y, x) of channel c.
__device__ __forceinline__ ACC x_whole(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, INDEX n, int c, int y, int x,
    const Geometry& geo) {
    ACC sum = 0;
#pragma unroll 1
    for (int t = 0; t < geo.taps(); ++t) {
        const int row = y - geo.tap_y(t / geo.kernel_w), column = x - geo.tap_x(t % geo.kernel_w);
        const INDEX at = geo.pixel(row, column);
#pragma unroll 1
        for (int s = 0; s < geo.regions(); ++s) {
            const int h = reader(row, geo.offset_y(s / geo.samples), geo.stride_y, geo.out_height);
            const int w = reader(column, geo.offset_x(s % geo.samples), geo.stride_x, geo.out_width);
            if (h < 0 || w < 0) continue;
            const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
#pragma unroll 1
            for (INDEX no = n * geo.outputs; no < (n + 1) * geo.outputs; ++no)
                if (takes_part(largest, no, s, p, geo.y_plane()))
                    sum += sample_weight(grad_output, in, n, no, s, p, geo) * by_position(in, no, t, at, geo) *
                           whole_kernel(in, no, c, t, p, geo);
        }
    }
    return sum;
}
