#pragma once
// local_filter for any kernel size, known at run time, and the gradient of x under upsampling. Filters do not fit in
// registers here, so the loops turn inside out: a thread keeps STRIP sums (of STRIP channels, or of STRIP taps) and
// reads each filter value once for all of them. Included by local_filter.cu, whose names it uses.

// A row or column of the source, or -1 where there is none.
__device__ __forceinline__ int source_position(int at, int size) { return at >= 0 && at < size ? at : -1; }

// Forward: a thread makes one pixel of up to STRIP channels.
__device__ __forceinline__ void forward_any_size(
    const T* __restrict__ x, const F* __restrict__ weight, const ACC* __restrict__ channel_weight, T* __restrict__ y,
    INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int group_channels = geo.channels / geo.groups, taps = geo.kernel_h * geo.kernel_w, u = geo.upsample;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const int w = take(flat, geo.out_width), h = take(flat, geo.out_height);
    const int first = STRIP * take(flat, (group_channels + STRIP - 1) / STRIP);
    const int count = min(STRIP, group_channels - first);
    const INDEX n = flat / geo.groups, channel = flat * group_channels + first;  // flat is now n * groups + g
    const INDEX pixel = static_cast<INDEX>(h) * geo.out_width + w;
    const INDEX phase = (h % u) * u + w % u;
    weight += flat * taps * y_plane + pixel;
    channel_weight += ((n * (static_cast<INDEX>(u) * u - 1) + phase) * geo.channels + channel) * taps;
    x += channel * x_plane;

    ACC sum[STRIP] = {};
    for (int a = 0; a < geo.kernel_h; ++a) {
        const int row = source_position((h / u) * geo.stride_y - geo.pad_y + a * geo.dilation_y, geo.height);
        for (int b = 0; b < geo.kernel_w; ++b) {
            const int column = source_position((w / u) * geo.stride_x - geo.pad_x + b * geo.dilation_x, geo.width);
            const bool inside = row >= 0 && column >= 0;
            const int tap = a * geo.kernel_w + b;
            const ACC filter = load(weight + tap * y_plane);
#pragma unroll
            for (int c = 0; c < STRIP; ++c) {
                if (c >= count) continue;
                const T* source = x + c * x_plane + static_cast<INDEX>(row) * geo.width + column;
                const ACC value = inside ? load(source) : ACC(0);
                sum[c] += combined(filter, channel_weight + static_cast<INDEX>(c) * taps + tap) * value;
            }
        }
    }
#pragma unroll
    for (int c = 0; c < STRIP; ++c)
        if (c < count) store(y + (channel + c) * y_plane + pixel, sum[c]);
}

// Gradient of x: a thread makes one pixel of up to STRIP channels. Tap a connects row y of x with the rows
// h = u*(y + pad - a*d)/s + i of y, i = 0 .. u-1, if that division leaves no remainder.
__device__ __forceinline__ void grad_x_any_size(
    const T* __restrict__ grad_output, const F* __restrict__ weight, const ACC* __restrict__ channel_weight,
    T* __restrict__ grad_x, INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int group_channels = geo.channels / geo.groups, taps = geo.kernel_h * geo.kernel_w, u = geo.upsample;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const int column = take(flat, geo.width), row = take(flat, geo.height);
    const int first = STRIP * take(flat, (group_channels + STRIP - 1) / STRIP);
    const int count = min(STRIP, group_channels - first);
    const INDEX n = flat / geo.groups, channel = flat * group_channels + first;
    weight += flat * taps * y_plane;
    channel_weight += (n * (static_cast<INDEX>(u) * u - 1) * geo.channels + channel) * taps;
    grad_output += channel * y_plane;

    ACC sum[STRIP] = {};
    for (int a = 0; a < geo.kernel_h; ++a) {
        const int scaled_y = row + geo.pad_y - a * geo.dilation_y;
        if (scaled_y < 0 || scaled_y % geo.stride_y != 0) continue;
        for (int b = 0; b < geo.kernel_w; ++b) {
            const int scaled_x = column + geo.pad_x - b * geo.dilation_x;
            if (scaled_x < 0 || scaled_x % geo.stride_x != 0) continue;
            const int h = scaled_y / geo.stride_y * u, w = scaled_x / geo.stride_x * u, tap = a * geo.kernel_w + b;
            for (int phase = 0; phase < u * u; ++phase) {
                const int out_h = h + phase / u, out_w = w + phase % u;
                if (out_h >= geo.out_height || out_w >= geo.out_width) continue;
                const INDEX pixel = static_cast<INDEX>(out_h) * geo.out_width + out_w;
                const ACC filter = load(weight + tap * y_plane + pixel);
                const INDEX factors = static_cast<INDEX>(phase) * geo.channels * taps + tap;
#pragma unroll
                for (int c = 0; c < STRIP; ++c) {
                    if (c >= count) continue;
                    const ACC term = combined(filter, channel_weight + factors + static_cast<INDEX>(c) * taps);
                    sum[c] += term * load(grad_output + c * y_plane + pixel);
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < STRIP; ++c)
        if (c < count) store(grad_x + (channel + c) * x_plane + static_cast<INDEX>(row) * geo.width + column, sum[c]);
}

#if KH == 0

// STRIP consecutive taps, from `first`: where they look, relative to their window's corner.
struct Taps {
    int dy[STRIP], dx[STRIP], count;

    __device__ __forceinline__ Taps(const Geometry& geo, int first) {
        count = min(STRIP, geo.kernel_h * geo.kernel_w - first);
#pragma unroll
        for (int j = 0; j < STRIP; ++j) {
            dy[j] = (first + j) / geo.kernel_w * geo.dilation_y;
            dx[j] = (first + j) % geo.kernel_w * geo.dilation_x;
        }
    }
};

// Gradient of weight: a thread makes STRIP taps of one pixel.
__device__ __forceinline__ void weight_gradient_any_size(
    const T* __restrict__ grad_output, const T* __restrict__ x, const ACC* __restrict__ channel_weight,
    F* __restrict__ grad_weight, INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    const bool exists = flat < items;
    if (!exists) flat = 0;  // stays for the barriers
    const int group_channels = geo.channels / geo.groups, taps = geo.kernel_h * geo.kernel_w, u = geo.upsample;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const int w = take(flat, geo.out_width), h = take(flat, geo.out_height);
    const int first = STRIP * take(flat, (taps + STRIP - 1) / STRIP);
    const INDEX n = flat / geo.groups, channel = flat * group_channels;
    const INDEX pixel = static_cast<INDEX>(h) * geo.out_width + w;
    const INDEX phase = (h % u) * u + w % u;
    channel_weight += ((n * (static_cast<INDEX>(u) * u - 1) + phase) * geo.channels + channel) * taps + first;

    const Taps tap(geo, first);
    INDEX offset[STRIP];
    unsigned inside = 0;  // bit j: tap j lies in the image
#pragma unroll
    for (int j = 0; j < STRIP; ++j) {
        const int row = source_position((h / u) * geo.stride_y - geo.pad_y + tap.dy[j], geo.height);
        const int column = source_position((w / u) * geo.stride_x - geo.pad_x + tap.dx[j], geo.width);
        if (row >= 0 && column >= 0) inside |= 1u << j;
        offset[j] = static_cast<INDEX>(row) * geo.width + column;
    }
    ACC sum[STRIP] = {};
    for (int c = threadIdx.y; exists && c < group_channels; c += blockDim.y) {
        const ACC gradient = load(grad_output + (channel + c) * y_plane + pixel);
#pragma unroll
        for (int j = 0; j < STRIP; ++j) {
            if (j >= tap.count) continue;
            const ACC value = inside >> j & 1u ? load(x + (channel + c) * x_plane + offset[j]) : ACC(0);
            sum[j] += gradient * filter_factor(channel_weight + static_cast<INDEX>(c) * taps + j) * value;
        }
    }
    F* target = grad_weight + (flat * taps + first) * y_plane + pixel;
    sum_over_y(sum, [&](int j, ACC total) {
        if (exists && j < tap.count) store(target + j * y_plane, total);
    });
}

// Gradient of channel_weight: a warp makes STRIP taps of one channel, one phase, one slot of the pixels.
__device__ __forceinline__ void channel_weight_partial_any_size(
    const T* __restrict__ grad_output, const T* __restrict__ x, const F* __restrict__ weight, ACC* __restrict__ partial,
    INDEX items, int slots, const Geometry& geo) {
    INDEX flat = thread_index() / WARP;
    if (flat >= items) return;
    const int lane = threadIdx.x % WARP, u = geo.upsample;
    const int group_channels = geo.channels / geo.groups, taps = geo.kernel_h * geo.kernel_w;
    const int strips = (taps + STRIP - 1) / STRIP;
    const int first = STRIP * take(flat, strips);
    const int channel = take(flat, geo.channels), group = channel / group_channels;
    const int phase_x = take(flat, u), phase_y = take(flat, u);
    const INDEX slot_n = flat;  // slot * batch + n
    const INDEX batch = items / (static_cast<INDEX>(slots) * u * u * geo.channels * strips);
    const INDEX n = slot_n % batch;
    const int slot = slot_n / batch;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const int base_width = (geo.out_width - phase_x + u - 1) / u, base_height = (geo.out_height - phase_y + u - 1) / u;
    const INDEX positions = static_cast<INDEX>(base_height) * base_width;
    const INDEX share = (positions + slots - 1) / slots, end = min((slot + 1) * share, positions);
    x += (n * geo.channels + channel) * x_plane;
    grad_output += (n * geo.channels + channel) * y_plane;
    weight += ((n * geo.groups + group) * taps + first) * y_plane;

    const Taps tap(geo, first);
    ACC sum[WARP] = {};
    for (INDEX position = slot * share + lane; position < end; position += WARP) {
        const int w = position % base_width, h = position / base_width;
        const INDEX pixel = static_cast<INDEX>(h * u + phase_y) * geo.out_width + (w * u + phase_x);
        const ACC gradient = load(grad_output + pixel);
#pragma unroll
        for (int j = 0; j < STRIP; ++j) {
            if (j >= tap.count) continue;
            const int row = source_position(h * geo.stride_y - geo.pad_y + tap.dy[j], geo.height);
            const int column = source_position(w * geo.stride_x - geo.pad_x + tap.dx[j], geo.width);
            const bool inside = row >= 0 && column >= 0;
            const ACC value = inside ? load(x + static_cast<INDEX>(row) * geo.width + column) : ACC(0);
            sum[j] += gradient * (COMBINE == 1 ? load(weight + j * y_plane + pixel) : ACC(1)) * value;
        }
    }
    lane_totals(sum);
    partial += (((slot_n * u + phase_y) * u + phase_x) * geo.channels + channel) * taps + first;
    if (lane < tap.count) partial[lane] = sum[0];
}

#endif
