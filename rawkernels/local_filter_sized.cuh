#pragma once
// local_filter for kernel sizes that are compiled in: the filter values of a thread's pixels, or the sums that become
// their gradients, live in registers. Included by local_filter.cu, whose names it uses and whose header explains it.

constexpr int TAPS = KH * KW;

// The source positions that ROWS_OUT adjacent output pixels need: offsets into a plane, and which exist.
template <int ROWS_IN>
struct Window {
    INDEX row[ROWS_IN], column[KW];
    unsigned rows_inside = 0, columns_inside = 0;  // bit i: row[i], column[i] lies in the plane

    // Position i is (first + i*step) / divisor where that is a whole number inside 0..size-1.
    template <int COUNT>
    __device__ __forceinline__ static unsigned fill(
        INDEX (&offset)[COUNT], int first, int step, int divisor, int size, INDEX pitch) {
        unsigned inside = 0;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int scaled = first + i * step;
            const int position = UNIT_STEPS ? scaled : scaled / divisor;
            if (scaled >= 0 && position < size && (UNIT_STEPS || position * divisor == scaled)) inside |= 1u << i;
            offset[i] = static_cast<INDEX>(position) * pitch;
        }
        return inside;
    }

    __device__ __forceinline__ bool inside(int i, int b) const {
        return (rows_inside >> i & 1u) && (columns_inside >> b & 1u);
    }

    // Whether the windows of all lanes of this warp lie inside a plane `width` wide, and their `pixels` exist.
    // Every lane gets the same answer: lanes count along x, so w - lane is where the warp starts if it is in one row.
    __device__ __forceinline__ bool interior(int w, int pixels, int first_column, int width) const {
        if (!UNIT_STEPS || UPSAMPLED) return false;
        const int span = min(static_cast<int>(blockDim.x), WARP);
        const int lane = threadIdx.x % span;
        return rows_inside == (1u << ROWS_IN) - 1 && w >= lane && w - lane + span <= pixels &&
               first_column - lane >= 0 && first_column - lane + span + KW - 1 <= width;
    }
};

__device__ __forceinline__ int step(int dilation) { return UNIT_STEPS ? 1 : dilation; }

constexpr int WINDOW_ROWS = (ROWS - 1) * ROW_SHIFT + KH;

// Forward: window of the pixels (h .. h+ROWS-1, w) of y, in x.
__device__ __forceinline__ Window<WINDOW_ROWS> window_in_x(const Geometry& geo, int h, int w) {
    Window<WINDOW_ROWS> window;
    const int y = (UPSAMPLED ? h / geo.upsample : h) * geo.stride_y - geo.pad_y;
    const int x = (UPSAMPLED ? w / geo.upsample : w) * geo.stride_x - geo.pad_x;
    window.rows_inside = window.fill(window.row, y, step(geo.dilation_y), 1, geo.height, geo.width);
    window.columns_inside = window.fill(window.column, x, step(geo.dilation_x), 1, geo.width, 1);
    return window;
}

// Adjoint: window of the pixels (y .. y+ROWS-1, x) of x, in y. Taps run backwards: window row i of output row r
// belongs to tap KH-1 - (i - r*ROW_SHIFT).
__device__ __forceinline__ Window<WINDOW_ROWS> window_in_y(const Geometry& geo, int y, int x) {
    Window<WINDOW_ROWS> window;
    const int h = y + geo.pad_y - (KH - 1) * step(geo.dilation_y);
    const int w = x + geo.pad_x - (KW - 1) * step(geo.dilation_x);
    window.rows_inside = window.fill(window.row, h, step(geo.dilation_y), geo.stride_y, geo.out_height, geo.out_width);
    window.columns_inside = window.fill(window.column, w, step(geo.dilation_x), geo.stride_x, geo.out_width, 1);
    return window;
}

// Offset of the channel weights of pixel (h, w): those of its phase.
__device__ __forceinline__ INDEX phase_offset(const Geometry& geo, int h, int w) {
    if (!UPSAMPLED) return 0;
    const INDEX phase = (h % geo.upsample) * geo.upsample + w % geo.upsample;
    return phase * geo.channels * TAPS;
}

// Apply the filters of one thread to `count` channels. source, target and channel_weight point at the first of them,
// source at its plane, target at the thread's first pixel.
template <bool ADJOINT, bool INTERIOR>
__device__ __forceinline__ void apply(
    const ACC (&filter)[ROWS][TAPS], const Window<WINDOW_ROWS>& window, const INDEX (&phase)[ROWS], int count, int rows,
    const T* __restrict__ source, INDEX source_plane, const ACC* __restrict__ channel_weight, T* __restrict__ target,
    INDEX target_plane, INDEX target_pitch) {
    for (int c = 0; c < count; ++c) {
        ACC sum[ROWS] = {};
#pragma unroll
        for (int i = 0; i < WINDOW_ROWS; ++i) {
#pragma unroll
            for (int b = 0; b < KW; ++b) {
                const bool inside = INTERIOR || window.inside(i, b);
                const ACC value = inside ? load(source + (window.row[i] + window.column[b])) : ACC(0);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const int a = i - r * ROW_SHIFT;
                    if (a < 0 || a >= KH) continue;
                    const int tap = ADJOINT ? TAPS - 1 - (a * KW + b) : a * KW + b;
                    const ACC term = combined(filter[r][a * KW + b], channel_weight + phase[r] + tap) * value;
                    if (!ADJOINT || inside) sum[r] += term;  // the adjoint has no term for a missing pixel of y
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (r < rows) store(target + r * target_pitch, sum[r]);
        source += source_plane;
        target += target_plane;
        channel_weight += TAPS;
    }
}

// Forward (x to y) or adjoint (gradient of y to gradient of x, not for UPSAMPLED): the same gather.
template <bool ADJOINT>
__device__ __forceinline__ void filter_planes(
    const T* __restrict__ source, const F* __restrict__ weight, const ACC* __restrict__ channel_weight,
    T* __restrict__ target, INDEX items, int chunk, const Geometry& geo) {
    INDEX flat = thread_index();
    if (flat >= items) return;
    const int target_height = ADJOINT ? geo.height : geo.out_height, target_width = ADJOINT ? geo.width : geo.out_width;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const INDEX source_plane = ADJOINT ? y_plane : x_plane, target_plane = ADJOINT ? x_plane : y_plane;
    const int group_channels = geo.channels / geo.groups;
    const int w = take(flat, target_width);
    const int h = ROWS * take(flat, (target_height + ROWS - 1) / ROWS);
    const int first = chunk * take(flat, (group_channels + chunk - 1) / chunk);
    const int count = min(chunk, group_channels - first);
    const INDEX n_group = flat;  // n * groups + g
    const INDEX n = flat / geo.groups;
    const INDEX channel = n_group * group_channels + first;  // n * channels + c

    const Window<WINDOW_ROWS> window = ADJOINT ? window_in_y(geo, h, w) : window_in_x(geo, h, w);
    const int rows = min(ROWS, target_height - h);
    ACC filter[ROWS][TAPS];
    INDEX phase[ROWS];
    const F* filters = weight + n_group * TAPS * y_plane;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        phase[r] = ADJOINT ? 0 : phase_offset(geo, h + r, w);
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            const int i = r * ROW_SHIFT + tap / KW, b = tap % KW;
            filter[r][tap] = 0;
            if (ADJOINT && r < rows && window.inside(i, b))
                filter[r][tap] = load(filters + (TAPS - 1 - tap) * y_plane + window.row[i] + window.column[b]);
            if (!ADJOINT && r < rows)
                filter[r][tap] = load(filters + tap * y_plane + static_cast<INDEX>(h + r) * geo.out_width + w);
        }
    }
    const int phases = UPSAMPLED ? geo.upsample * geo.upsample : 1;
    channel_weight += (n * (phases - 1) * geo.channels + channel) * TAPS;  // (n, phase 0, c)
    source += channel * source_plane;
    target += channel * target_plane + static_cast<INDEX>(h) * target_width + w;
    const int first_column = ADJOINT ? w + geo.pad_x - (KW - 1) : w - geo.pad_x;
    if (window.interior(w, target_width, first_column, ADJOINT ? geo.out_width : geo.width))
        apply<ADJOINT, true>(filter, window, phase, count, rows, source, source_plane, channel_weight, target,
                             target_plane, target_width);
    else
        apply<ADJOINT, false>(filter, window, phase, count, rows, source, source_plane, channel_weight, target,
                              target_plane, target_width);
}

// Gradient of weight. Thread (pixel, y) sums over the channels y, y + blockDim.y, ... of the group.
template <bool INTERIOR>
__device__ __forceinline__ void correlate(
    ACC (&sum)[ROWS * TAPS], const Window<WINDOW_ROWS>& window, const INDEX (&phase)[ROWS], int channels, int rows,
    const T* __restrict__ grad_output, const T* __restrict__ x, const ACC* __restrict__ channel_weight,
    INDEX x_plane, INDEX y_plane, int out_width) {
    for (int c = threadIdx.y; c < channels; c += blockDim.y) {
        const T* source = x + c * x_plane;
        ACC gradient[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            gradient[r] = r < rows ? load(grad_output + c * y_plane + r * static_cast<INDEX>(out_width)) : ACC(0);
#pragma unroll
        for (int i = 0; i < WINDOW_ROWS; ++i) {
#pragma unroll
            for (int b = 0; b < KW; ++b) {
                const bool inside = INTERIOR || window.inside(i, b);
                const ACC value = inside ? load(source + (window.row[i] + window.column[b])) : ACC(0);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const int a = i - r * ROW_SHIFT, tap = a * KW + b;
                    if (a < 0 || a >= KH) continue;
                    const ACC factor = filter_factor(channel_weight + c * TAPS + phase[r] + tap);
                    sum[r * TAPS + tap] += gradient[r] * factor * value;
                }
            }
        }
    }
}

__device__ __forceinline__ void weight_gradient(
    const T* __restrict__ grad_output, const T* __restrict__ x, const ACC* __restrict__ channel_weight,
    F* __restrict__ grad_weight, INDEX items, const Geometry& geo) {
    INDEX flat = thread_index();
    const bool exists = flat < items;
    if (!exists) flat = 0;  // stays for the barriers
    const int group_channels = geo.channels / geo.groups;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const int w = take(flat, geo.out_width);
    const int h = ROWS * take(flat, (geo.out_height + ROWS - 1) / ROWS);
    const INDEX n_group = flat, n = flat / geo.groups;
    const INDEX channel = n_group * group_channels;
    const INDEX pixel = static_cast<INDEX>(h) * geo.out_width + w;
    const int rows = min(ROWS, geo.out_height - h);
    ACC sum[ROWS * TAPS] = {};
    if (exists) {
        const Window<WINDOW_ROWS> window = window_in_x(geo, h, w);
        INDEX phase[ROWS];
        for (int r = 0; r < ROWS; ++r) phase[r] = phase_offset(geo, h + r, w);
        const int phases = UPSAMPLED ? geo.upsample * geo.upsample : 1;
        channel_weight += (n * (phases - 1) * geo.channels + channel) * TAPS;
        x += channel * x_plane;
        grad_output += channel * y_plane + pixel;
        if (window.interior(w, geo.out_width, w - geo.pad_x, geo.width))
            correlate<true>(sum, window, phase, group_channels, rows, grad_output, x, channel_weight, x_plane,
                            y_plane, geo.out_width);
        else
            correlate<false>(sum, window, phase, group_channels, rows, grad_output, x, channel_weight, x_plane,
                             y_plane, geo.out_width);
    }
    F* target = grad_weight + n_group * TAPS * y_plane + pixel;
    auto write = [&](int index, ACC total) {
        const int r = index / TAPS, tap = index % TAPS;
        if (exists && r < rows) store(target + tap * y_plane + r * static_cast<INDEX>(geo.out_width), total);
    };
    if (blockDim.y == 1) {
#pragma unroll
        for (int index = 0; index < ROWS * TAPS; ++index) write(index, sum[index]);
    } else {
        sum_over_y(sum, write);
    }
}

// Gradient of channel_weight. A warp takes SET channels, one phase and one slot of the pixels of that phase: those at
// (h*u + i, w*u + j) for base positions (h, w), whose windows slide by one row whatever u is. Its lanes take adjacent
// w, BASE_ROWS rows each; their sums are added up by shuffles and go to the slot's own place in `partial`.
__device__ __forceinline__ void channel_weight_partial(
    const T* __restrict__ grad_output, const T* __restrict__ x, const F* __restrict__ weight, ACC* __restrict__ partial,
    INDEX items, int slots, const Geometry& geo) {
    constexpr int BASE_SHIFT = BASE_ROWS > 1 ? 1 : 0, ROWS_IN = (BASE_ROWS - 1) * BASE_SHIFT + KH;
    INDEX flat = thread_index() / WARP;
    if (flat >= items) return;
    const int lane = threadIdx.x % WARP, u = geo.upsample;
    const int group_channels = geo.channels / geo.groups, sets = (group_channels + SET - 1) / SET;
    const int first = SET * take(flat, sets);
    const int group = take(flat, geo.groups);
    const int channel = group * group_channels + first, count = min(SET, group_channels - first);
    const int phase_x = take(flat, u), phase_y = take(flat, u);
    const INDEX slot_n = flat;  // slot * batch + n: partial is (slots, N, u, u, C, kh, kw)
    const INDEX batch = items / (static_cast<INDEX>(slots) * u * u * geo.groups * sets);
    const INDEX n = slot_n % batch;
    const int slot = slot_n / batch;
    const INDEX x_plane = static_cast<INDEX>(geo.height) * geo.width;
    const INDEX y_plane = static_cast<INDEX>(geo.out_height) * geo.out_width;
    const int base_width = (geo.out_width - phase_x + u - 1) / u, base_height = (geo.out_height - phase_y + u - 1) / u;
    const INDEX positions = static_cast<INDEX>((base_height + BASE_ROWS - 1) / BASE_ROWS) * base_width;
    const INDEX share = (positions + slots - 1) / slots, end = min((slot + 1) * share, positions);
    x += (n * geo.channels + channel) * x_plane;
    grad_output += (n * geo.channels + channel) * y_plane;
    weight += (n * geo.groups + group) * TAPS * y_plane;

    ACC sum[SET * TAPS] = {};
    for (INDEX position = slot * share + lane; position < end; position += WARP) {
        const int w = position % base_width, h = BASE_ROWS * (position / base_width);
        const int y = h * geo.stride_y - geo.pad_y, left = w * geo.stride_x - geo.pad_x;
        Window<ROWS_IN> window;
        window.rows_inside = window.fill(window.row, y, step(geo.dilation_y), 1, geo.height, geo.width);
        window.columns_inside = window.fill(window.column, left, step(geo.dilation_x), 1, geo.width, 1);
        const INDEX pixel = static_cast<INDEX>(h * u + phase_y) * geo.out_width + (w * u + phase_x);
        const INDEX next_row = static_cast<INDEX>(u) * geo.out_width;
        const int rows = min(BASE_ROWS, base_height - h);
#pragma unroll
        for (int s = 0; s < SET; ++s) {
            if (s >= count) break;
            ACC gradient[BASE_ROWS];
#pragma unroll
            for (int r = 0; r < BASE_ROWS; ++r)
                gradient[r] = r < rows ? load(grad_output + s * y_plane + pixel + r * next_row) : ACC(0);
#pragma unroll
            for (int i = 0; i < ROWS_IN; ++i) {
#pragma unroll
                for (int b = 0; b < KW; ++b) {
                    const T* source = x + s * x_plane + (window.row[i] + window.column[b]);
                    const ACC value = window.inside(i, b) ? load(source) : ACC(0);
#pragma unroll
                    for (int r = 0; r < BASE_ROWS; ++r) {
                        const int a = i - r * BASE_SHIFT, tap = a * KW + b;
                        if (a < 0 || a >= KH || r >= rows) continue;
                        const F* filter = weight + tap * y_plane + pixel + r * next_row;
                        sum[s * TAPS + tap] += gradient[r] * (COMBINE == 1 ? load(filter) : ACC(1)) * value;
                    }
                }
            }
        }
    }
    partial += ((slot_n * u + phase_y) * u + phase_x) * geo.channels * TAPS + static_cast<INDEX>(channel) * TAPS;
#pragma unroll
    for (int start = 0; start < SET * TAPS; start += WARP) {
        ACC values[WARP];
#pragma unroll
        for (int i = 0; i < WARP; ++i) values[i] = start + i < SET * TAPS ? sum[start + i] : ACC(0);
        lane_totals(values);
        if (start + lane < count * TAPS) partial[start + lane] = values[0];
    }
}
