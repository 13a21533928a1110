#pragma once
// dynamic_sampling: the gradients of x and of position_attention, at the pixels of x. Both are made of what the outputs
// whose samples are centred on a pixel q give back to it, of each output channel o (p is such an output, s its sample):
//
//   G[o,c,q] = sum over p of grad * As * U[o,c,p]        D[o,t,q] = sum over p of grad * As * V'[o,t,p]
//
//   gradient of position_attention   D[o,t,q] X1(q + t), and sum over c of G[o,c,q] x[c,q] at the centre
//   gradient of x                    sum over o of Ap[o,centre,q] G[o,c,q], and for all channels the gradient of X1,
//                                    sum over o and t of Ap[o,t,r - t] D[o,t,r - t]
//
// G is gathered first, then D, then the gradient of x is put together. Sums over output channels are made in slots, and
// those over channels in strips. Included by dynamic_sampling.cu, whose names it uses.

// Pixels of a column of x, of which a thread has up to ROWS: a sample's step apart, so that most outputs that give
// something to one give something to the others.
struct Column {
    INDEX n;
    int y, x, rows;

    // The rows of Area are the first of so many; `phases` of them come one after the other, of `height` in all.
    __device__ __forceinline__ Column(const Pixel& pixel, const Divisor& phases, int height, const Geometry& geo) {
        const int group = phases.divide(pixel.y);
        n = pixel.n;
        x = pixel.x;
        y = group * ROWS * geo.sample_y + pixel.y - group * phases.value;
        rows = 0;
        while (rows < ROWS && y + static_cast<long long>(rows) * geo.sample_y < height) ++rows;
    }
};

// What comes back to the pixels (y + m * sample_y, x) from `count` planes of values of the outputs, and the sums of the
// weights alone. A value of the outputs serves all rows.
template <int COUNT>
__device__ __forceinline__ void gather(
    ACC (&sum)[ROWS][COUNT], ACC (&weights)[ROWS], const T* __restrict__ grad_output,
    const int* __restrict__ largest, const Arrays& in, const T* __restrict__ planes, int count, INDEX no,
    const Column& at, const Geometry& geo) {
    const int samples = geo.sample_count();
    const INDEX apart = samples * geo.y_plane();  // from As of one row of samples to that of the next
    Readers below(at.y - geo.offset_y(0) + (at.rows - 1) * geo.sample_y, geo.sample_y, geo.stride_y);
#pragma unroll 1
    for (int first = 1 - at.rows; first < samples; ++first, below.next()) {
        if (!below.among(geo.out_height)) continue;
        INDEX by_sample = no * geo.regions() * geo.y_plane() + first * apart;
        Readers across(at.x - geo.offset_x(0), geo.step_x(), geo.stride_x);
#pragma unroll 1
        for (int j = 0; j < samples; ++j, across.next(), by_sample += geo.y_plane()) {
            if (!across.among(geo.out_width)) continue;
            const INDEX p = static_cast<INDEX>(below.output) * geo.out_width + across.output;
            ACC value[COUNT];
            load_planes(value, planes + p, geo.y_plane(), count);
#pragma unroll
            for (int m = 0; m < ROWS; ++m) {
                const int i = first + m, s = i * samples + j;
                if (m >= at.rows || i < 0 || i >= samples || !takes_part(largest, no, s, p, geo.y_plane())) continue;
                ACC weight = gradient_at(grad_output, at.n, no, s, p, geo);
                if (in.sample_attention)
                    weight *= load(in.sample_attention + (by_sample + m * apart + p)) + geo.attention_residual;
                weights[m] += weight;
#pragma unroll
                for (int c = 0; c < COUNT; ++c) sum[m][c] += weight * value[c];
            }
        }
    }
}

// What G gives to x, in a slot of output channels, and to the attention of the centre.
__device__ __forceinline__ void give_channels(
    const ACC (&sum)[ROWS][CHANNELS], const Arrays& in, ACC* __restrict__ of_x, ACC* __restrict__ of_centre,
    const Column& q, INDEX batch, int first, int slot, bool begin, INDEX no, const Geometry& geo) {
    const int count = min(CHANNELS, geo.channels - first);
    const INDEX below = geo.sample_y * static_cast<INDEX>(geo.width);
    const INDEX at = geo.pixel(q.y, q.x), strip = first / CHANNELS;
    const T* pixels = in.x + (q.n * geo.channels + first) * geo.x_plane() + at;
    ACC* target = of_x + ((slot * batch + q.n) * geo.channels + first) * geo.x_plane() + at;
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
        if (m >= q.rows) continue;
        const INDEX row = m * below;
        if (of_centre) {
            ACC value[CHANNELS], dot = 0;
            load_planes(value, pixels + row, geo.x_plane(), count);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) dot += sum[m][c] * value[c];
            of_centre[(strip * batch * geo.outputs + no) * geo.x_plane() + at + row] = dot;
        }
        if (!of_x) continue;
        const ACC factor = by_position(in, no, geo.centre(), at + row, geo);
        ACC* place = target + row;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c, place += geo.x_plane())
            if (c < count) *place = factor * sum[m][c] + (begin ? ACC(0) : *place);
    }
}

// G of pixels of x, of CHANNELS channels from `first` on and of output channel o. `of_x` is (slots,N,C,H,W),
// `of_centre` (strips,N,O,H,W); either may be absent. The loop over output channels is outside, and one over strips
// within it, so that no address is the same for all of them, to be kept in registers meanwhile.
__device__ __forceinline__ void gather_channels(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, ACC* __restrict__ of_x,
    ACC* __restrict__ of_centre, const Column& q, INDEX batch, int first, int slot, int o, bool begin,
    const Geometry& geo) {
    const INDEX no = q.n * geo.outputs + o;
    ACC sum[ROWS][CHANNELS] = {}, unused[ROWS] = {};
    const T* kernels = in.channel_kernel + (no * geo.channels + first) * geo.y_plane();
    gather(sum, unused, grad_output, largest, in, kernels, min(CHANNELS, geo.channels - first), no, q, geo);
    give_channels(sum, in, of_x, of_centre, q, batch, first, slot, begin, no, geo);
}

// D of pixels, which may lie outside the image as far as taps reach, of the taps from `first` on and of output channel
// o: the gradient of position_attention, and in slots of output channels `of_total` (slots,N,kh,kw,H,W), for the pixel
// that a tap sees. `strips` are those of of_centre.
__device__ __forceinline__ void gather_taps(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in,
    const ACC* __restrict__ of_centre, int strips, ACC* __restrict__ of_total, T* __restrict__ grad, const Column& at,
    INDEX batch, int first, int count, int slot, int o, bool begin, const Geometry& geo) {
    const INDEX no = at.n * geo.outputs + o;
    ACC sum[ROWS][TAPS] = {}, weights[ROWS] = {};
    const T* kernels = in.spatial_kernel + (no * geo.taps() + first) * geo.y_plane();
    gather(sum, weights, grad_output, largest, in, kernels, count, no, at, geo);
    bool finite = true;
    Tap tap(first, geo);
#pragma unroll
    for (int t = 0; t < TAPS; ++t, tap.next(geo)) {
        if (t >= count) continue;
        const bool is_centre = first + t == geo.centre();
#pragma unroll
        for (int m = 0; m < ROWS; ++m) {
            if (m >= at.rows) continue;
            const int y = at.y + m * geo.sample_y, row = y + geo.tap_y(tap.a), column = at.x + geo.tap_x(tap.b);
            const INDEX q = geo.pixel(y, at.x), seen = geo.pixel(row, column);
            ACC value = sum[m][t] + (is_centre ? weights[m] * geo.kernel_residual : ACC(0));
            if (of_total && seen >= 0) {
                const INDEX plane = (slot * batch + at.n) * geo.taps() + first + t;
                ACC* target = of_total + plane * geo.x_plane() + seen;
                *target = by_position(in, no, first + t, q, geo) * value + (begin ? ACC(0) : *target);
            }
            if (!grad || q < 0) continue;
            value *= total_at(in, at.n, row, column, geo);
            for (INDEX strip = 0; is_centre && strip < strips; ++strip)
                value += of_centre[(strip * batch * geo.outputs + no) * geo.x_plane() + q];
            store(grad + (no * geo.taps() + first + t) * geo.x_plane() + q, value);
            finite = finite && is_finite(value);
        }
    }
    if (finite) return;
#pragma unroll 1
    for (int m = 0; m < at.rows; ++m)
#pragma unroll 1
        for (int t = first; t < first + count; ++t)
            position_attention_again(
                grad_output, largest, in, grad, at.n, no, t, at.y + m * geo.sample_y, at.x, geo);
}

// Gradient of x, put together: a thread makes one pixel of CHANNELS channels.
__device__ __forceinline__ void x_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in,
    const ACC* __restrict__ of_x, int slots, const ACC* __restrict__ of_total, int tap_slots, T* __restrict__ grad,
    const Pixel& q, INDEX batch, int first, const Geometry& geo) {
    ACC shared = 0;
    for (int slot = 0; slot < tap_slots; ++slot) {
        const ACC* plane = of_total + (slot * batch + q.n) * geo.taps() * geo.x_plane() + q.at;
        for (int t = 0; t < geo.taps(); ++t, plane += geo.x_plane()) shared += *plane;
    }
#pragma unroll 1
    for (int c = first; c < min(first + CHANNELS, geo.channels); ++c) {
        ACC sum = 0;
        for (INDEX slot = 0; slot < slots; ++slot)
            sum += of_x[((slot * batch + q.n) * geo.channels + c) * geo.x_plane() + q.at];
        sum += shared;
        if (!is_finite(sum)) sum = x_whole(grad_output, largest, in, q.n, c, q.y, q.x, geo);
        store(grad + (q.n * geo.channels + c) * geo.x_plane() + q.at, sum);
    }
}
