#pragma once
// dynamic_sampling_conv2d: the forward pass and the gradients, one function for each kernel. Included by
// dynamic_sampling.cu, whose names it uses.

// Forward: fuse the regions of one pixel; `largest` gets the sample that a maximum comes from.
__device__ __forceinline__ void fuse_regions(
    const Arrays& in, const Plain& plain, T* __restrict__ y, int* __restrict__ largest, INDEX items,
    const Geometry& geo) {
    Place at;
    if (!at.find(items, geo)) return;
    const INDEX y_plane = geo.y_plane();
    ACC fused[OUTPUTS] = {};
    int which[OUTPUTS] = {};
    bool finite = true;
    for (int first = 0; first < geo.regions(); first += TILE) {
        ACC value[OUTPUTS][TILE];
        sum_regions(value, in, at.n, at.no, at.count, first, at.h, at.w, at.p, geo);
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            const int s = first + k;
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) {
                if (o >= at.count || s >= geo.regions()) continue;
                const INDEX no = at.no + o;
                const ACC z = value[o][k] * by_sample(in, no, s, at.p, geo);
                if (FUSE == 0) fused[o] += z;
                if (FUSE == 1 && (s == 0 || is_larger(z, fused[o]))) {
                    fused[o] = z;
                    which[o] = s;
                }
                finite = finite && is_finite(value[o][k]);
                const INDEX stacked = (at.n * geo.regions() + s) * geo.outputs + (no - at.n * geo.outputs);
                if (FUSE == 2) store(y + stacked * y_plane + at.p, z);
            }
        }
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
        if (FUSE == 2 || o >= at.count) continue;
        store(y + (at.no + o) * y_plane + at.p, fused[o]);
        if (FUSE == 1) largest[(at.no + o) * y_plane + at.p] = which[o];
    }
    if (finite) return;
#pragma unroll 1
    for (int o = 0; o < at.count; ++o) fuse_whole(in, plain, y, largest, at.n, at.no + o, at.h, at.w, at.p, geo);
}

// Gradient of channel_kernel: a thread makes one pixel of one output channel and of STRIP channels.
__device__ __forceinline__ void channel_kernel_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, const Plain& plain,
    T* __restrict__ grad, INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int w = take(flat, geo.out_width), h = take(flat, geo.out_height);
    const int first = STRIP * take(flat, (geo.channels + STRIP - 1) / STRIP);
    const int count = min(STRIP, geo.channels - first);
    const INDEX no = flat, n = no / geo.outputs, p = static_cast<INDEX>(h) * geo.out_width + w;
    const T* pixels = in.x + (n * geo.channels + first) * geo.x_plane();
    ACC sum[STRIP] = {};
    for (int s = 0; s < geo.regions(); ++s) {
        if (!takes_part(largest, no, s, p, geo.y_plane())) continue;
        const INDEX at = geo.pixel(h * geo.stride_y + geo.offset_y(s), w * geo.stride_x + geo.offset_x(s));
        const ACC weight =
            sample_weight(grad_output, in, n, no, s, p, geo) * by_position(in, no, geo.centre(), at, geo);
#pragma unroll
        for (int c = 0; c < STRIP; ++c)
            if (c < count) sum[c] += weight * at_or_zero(pixels + c * geo.x_plane(), at);
    }
    bool finite = true;
#pragma unroll
    for (int c = 0; c < STRIP; ++c) {
        if (c >= count) continue;
        store(grad + (no * geo.channels + first + c) * geo.y_plane() + p, sum[c]);
        finite = finite && is_finite(sum[c]);
    }
    if (finite || plain.x == in.x) return;  // but for box sums these are no factors
    const ACC weight = load(grad_output + no * geo.y_plane() + p);
#pragma unroll 1
    for (int c = first; c < first + count; ++c)
        store(grad + (no * geo.channels + c) * geo.y_plane() + p, boxed_whole(weight, plain, n, c, h, w, geo));
}

// Gradient of spatial_kernel: a thread makes one pixel of one output channel and of STRIP taps.
__device__ __forceinline__ void spatial_kernel_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, const Plain& plain,
    T* __restrict__ grad, INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int w = take(flat, geo.out_width), h = take(flat, geo.out_height);
    const int first = STRIP * take(flat, (geo.taps() + STRIP - 1) / STRIP);
    const int count = min(STRIP, geo.taps() - first);
    const INDEX no = flat, n = no / geo.outputs, p = static_cast<INDEX>(h) * geo.out_width + w;
    ACC sum[STRIP] = {};
    for (int s = 0; s < geo.regions(); ++s) {
        if (!takes_part(largest, no, s, p, geo.y_plane())) continue;
        const int y = h * geo.stride_y + geo.offset_y(s), x = w * geo.stride_x + geo.offset_x(s);
        const INDEX at = geo.pixel(y, x);
        const ACC weight = sample_weight(grad_output, in, n, no, s, p, geo);
#pragma unroll
        for (int k = 0; k < STRIP; ++k) {
            const int t = first + k;
            if (k >= count) continue;
            sum[k] += weight * by_position(in, no, t, at, geo) *
                      total_at(in, n, y + geo.tap_y(t), x + geo.tap_x(t), geo);
        }
    }
    bool finite = true;
#pragma unroll
    for (int k = 0; k < STRIP; ++k) {
        if (k >= count) continue;
        store(grad + (no * geo.taps() + first + k) * geo.y_plane() + p, sum[k]);
        finite = finite && is_finite(sum[k]);
    }
    if (finite) return;
#pragma unroll 1
    for (int t = first; t < first + count; ++t) {
        const ACC whole = spatial_kernel_whole(grad_output, largest, in, plain, n, no, t, h, w, p, geo);
        store(grad + (no * geo.taps() + t) * geo.y_plane() + p, whole);
    }
}

// Gradient of sample_attention: the regions once more, times grad_output.
__device__ __forceinline__ void sample_attention_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, T* __restrict__ grad,
    INDEX items, const Geometry& geo) {
    Place at;
    if (!at.find(items, geo)) return;
    Arrays plain = in;
    plain.sample_attention = nullptr;
    bool finite = true;
    for (int first = 0; first < geo.regions(); first += TILE) {
        ACC value[OUTPUTS][TILE];
        sum_regions(value, in, at.n, at.no, at.count, first, at.h, at.w, at.p, geo);
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            const int s = first + k;
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) {
                if (o >= at.count || s >= geo.regions()) continue;
                const INDEX no = at.no + o;
                const bool part = takes_part(largest, no, s, at.p, geo.y_plane());
                const ACC weight = part ? sample_weight(grad_output, plain, at.n, no, s, at.p, geo) : ACC(0);
                store(grad + (no * geo.regions() + s) * geo.y_plane() + at.p, part ? weight * value[o][k] : ACC(0));
                finite = finite && is_finite(value[o][k]);
            }
        }
    }
    if (finite) return;
#pragma unroll 1
    for (int o = 0; o < at.count; ++o)
#pragma unroll 1
        for (int s = 0; s < geo.regions(); ++s) {
            const INDEX no = at.no + o;
            if (!takes_part(largest, no, s, at.p, geo.y_plane())) continue;
            const int y = at.h * geo.stride_y + geo.offset_y(s), x = at.w * geo.stride_x + geo.offset_x(s);
            const ACC weight = sample_weight(grad_output, plain, at.n, no, s, at.p, geo);
            store(grad + (no * geo.regions() + s) * geo.y_plane() + at.p,
                  weight * region_whole(in, at.n, no, y, x, at.p, geo));
        }
}

// Gradient of position_attention: a thread makes one pixel of x, for one output channel and STRIP taps.
__device__ __forceinline__ void position_attention_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, T* __restrict__ grad,
    INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int x = take(flat, geo.width), y = take(flat, geo.height);
    const int first = STRIP * take(flat, (geo.taps() + STRIP - 1) / STRIP);
    const int count = min(STRIP, geo.taps() - first);
    const INDEX no = flat, n = no / geo.outputs, at = static_cast<INDEX>(y) * geo.width + x;
    const bool has_centre = geo.centre() >= first && geo.centre() < first + count;
    const T* pixels = in.x + n * geo.channels * geo.x_plane() + at;
    ACC sum[STRIP] = {}, centre = 0;
    for (int s = 0; s < geo.regions(); ++s) {
        const int h = Geometry::reader(y, geo.offset_y(s), geo.stride_y, geo.out_height);
        const int w = Geometry::reader(x, geo.offset_x(s), geo.stride_x, geo.out_width);
        const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
        if (h < 0 || w < 0 || !takes_part(largest, no, s, p, geo.y_plane())) continue;
        const ACC weight = sample_weight(grad_output, in, n, no, s, p, geo);
#pragma unroll
        for (int k = 0; k < STRIP; ++k)
            if (k < count) sum[k] += weight * tap_weight(in, no, first + k, p, geo);
        if (!has_centre) continue;
        ACC dot = 0;
        for (int c = 0; c < geo.channels; ++c)
            dot += load(in.channel_kernel + (no * geo.channels + c) * geo.y_plane() + p) *
                   load(pixels + c * geo.x_plane());
        centre += weight * dot;
    }
    bool finite = true;
#pragma unroll
    for (int k = 0; k < STRIP; ++k) {
        const int t = first + k;
        if (k >= count) continue;
        const ACC seen = total_at(in, n, y + geo.tap_y(t), x + geo.tap_x(t), geo);
        const ACC value = sum[k] * seen + (t == geo.centre() ? centre : ACC(0));
        store(grad + (no * geo.taps() + t) * geo.x_plane() + at, value);
        finite = finite && is_finite(value);
    }
    if (finite) return;
#pragma unroll 1
    for (int t = first; t < first + count; ++t) {
        const ACC whole = position_attention_whole(grad_output, largest, in, n, no, t, y, x, geo);
        store(grad + (no * geo.taps() + t) * geo.x_plane() + at, whole);
    }
}

// Gradient of X1: a thread makes one pixel, from one slot of the output channels.
__device__ __forceinline__ void total_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, ACC* __restrict__ partial,
    INDEX items, int slots, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    ACC* target = partial + flat;
    const int x = take(flat, geo.width), y = take(flat, geo.height);
    const INDEX batch = items / (geo.x_plane() * slots), n = take(flat, batch);
    const int slot = flat, share = (geo.outputs + slots - 1) / slots;
    const int begin = min(slot * share, geo.outputs), end = min(begin + share, geo.outputs);
    ACC sum = 0;
    for (int t = 0; t < geo.taps(); ++t) {
        const int row = y - geo.tap_y(t), column = x - geo.tap_x(t);
        const INDEX at = geo.pixel(row, column);
        for (int s = 0; s < geo.regions(); ++s) {
            const int h = Geometry::reader(row, geo.offset_y(s), geo.stride_y, geo.out_height);
            const int w = Geometry::reader(column, geo.offset_x(s), geo.stride_x, geo.out_width);
            if (h < 0 || w < 0) continue;
            const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
            for (INDEX no = n * geo.outputs + begin; no < n * geo.outputs + end; ++no)
                if (takes_part(largest, no, s, p, geo.y_plane()))
                    sum += sample_weight(grad_output, in, n, no, s, p, geo) * tap_weight(in, no, t, p, geo) *
                           by_position(in, no, t, at, geo);
        }
    }
    *target = sum;
}

// Gradient of x: a thread makes one pixel of STRIP channels, and adds the gradient of X1, the same for all.
__device__ __forceinline__ void x_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in,
    const ACC* __restrict__ partial, T* __restrict__ grad, INDEX items, int slots, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int x = take(flat, geo.width), y = take(flat, geo.height), strips = (geo.channels + STRIP - 1) / STRIP;
    const int first = STRIP * take(flat, strips);
    const int count = min(STRIP, geo.channels - first);
    const INDEX n = flat, at = static_cast<INDEX>(y) * geo.width + x;
    const INDEX batch = items / (geo.x_plane() * strips);
    ACC shared = 0, sum[STRIP] = {};
    for (int slot = 0; slot < slots; ++slot) shared += partial[(slot * batch + n) * geo.x_plane() + at];
    for (int s = 0; s < geo.regions(); ++s) {
        const int h = Geometry::reader(y, geo.offset_y(s), geo.stride_y, geo.out_height);
        const int w = Geometry::reader(x, geo.offset_x(s), geo.stride_x, geo.out_width);
        if (h < 0 || w < 0) continue;
        const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
        for (int o = 0; o < geo.outputs; ++o) {
            const INDEX no = n * geo.outputs + o;
            if (!takes_part(largest, no, s, p, geo.y_plane())) continue;
            const ACC weight =
                sample_weight(grad_output, in, n, no, s, p, geo) * by_position(in, no, geo.centre(), at, geo);
            const T* kernel = in.channel_kernel + (no * geo.channels + first) * geo.y_plane() + p;
#pragma unroll
            for (int c = 0; c < STRIP; ++c)
                if (c < count) sum[c] += weight * load(kernel + c * geo.y_plane());
        }
    }
    bool finite = true;
#pragma unroll
    for (int c = 0; c < STRIP; ++c) {
        if (c >= count) continue;
        store(grad + (n * geo.channels + first + c) * geo.x_plane() + at, sum[c] + shared);
        finite = finite && is_finite(sum[c] + shared);
    }
    if (finite) return;
#pragma unroll 1
    for (int c = first; c < first + count; ++c) {
        const ACC whole = x_whole(grad_output, largest, in, n, c, y, x, geo);
        store(grad + (n * geo.channels + c) * geo.x_plane() + at, whole);
    }
}
