#pragma once
// dynamic_sampling: the gradients of the two kernels, sums over the samples of an output. Included by
// dynamic_sampling.cu, whose names it uses.

// Gradient of channel_kernel: a thread makes one pixel of FEWER output channels and of CHANNELS channels. A value of x
// serves all output channels, a weight all channels.
__device__ __forceinline__ void channel_kernel_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, const Plain& plain,
    T* __restrict__ grad, const Pixel& pixel, const Outputs& of, int first, const Geometry& geo) {
    const int samples = geo.sample_count(), count = min(CHANNELS, geo.channels - first);
    const T* pixels = in.x + (of.n * geo.channels + first) * geo.x_plane();
    ACC sum[FEWER][CHANNELS] = {}, gradient[FEWER];
    // Of each output channel where As and, with a margin, Ap of the centre are: they move on from sample to sample.
    const T* by_sample[FEWER];
    const ACC* by_centre[FEWER];
    INDEX at = geo.place(of.y + geo.offset_y(0), of.x + geo.offset_x(0));
#pragma unroll
    for (int o = 0; o < FEWER; ++o) {
        const INDEX no = of.channel(o);
        gradient[o] = gradient_at(grad_output, of.n, no, 0, of.p, geo);
        by_sample[o] = in.sample_attention ? in.sample_attention + no * geo.regions() * geo.y_plane() + of.p : nullptr;
        by_centre[o] = MARGIN && in.position_attention ? in.seen + centre_plane(no, geo) + at : nullptr;
    }
#pragma unroll 1
    for (int s = 0, i = 0, j = 0; s < samples * samples; ++s) {
        if (!MARGIN) at = geo.pixel(of.y + geo.offset_y(i), of.x + geo.offset_x(j));
        ACC value[CHANNELS];
        const bool inside = MARGIN || at >= 0;
        load_planes(value, pixels + (inside ? at : INDEX(0)), geo.x_plane(), inside ? count : 0);
        const bool last = j + 1 == samples;
        const INDEX on = last ? geo.sample_y * static_cast<INDEX>(geo.width) - (samples - 1) * STEP : INDEX(STEP);
#pragma unroll
        for (int o = 0; o < FEWER; ++o) {
            const INDEX no = of.channel(o);
            if (takes_part(largest, no, s, of.p, geo.y_plane())) {
                if (FUSE == 2) gradient[o] = gradient_at(grad_output, of.n, no, s, of.p, geo);
                ACC weight = gradient[o];
                if (in.sample_attention) weight *= load(by_sample[o]) + geo.attention_residual;
                if (in.position_attention)
                    weight *= MARGIN ? *by_centre[o] : by_position(in, no, geo.centre(), at, geo);
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) sum[o][c] += weight * value[c];
            }
            by_sample[o] += geo.y_plane();
            by_centre[o] += on;
        }
        at += on;
        j = last ? 0 : j + 1;
        i += last;
    }
    bool finite = true;
#pragma unroll
    for (int o = 0; o < FEWER; ++o)
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            if (c >= count || o >= of.count) continue;
            store(grad + ((of.no + o) * geo.channels + first + c) * geo.y_plane() + of.p, sum[o][c]);
            finite = finite && is_finite(sum[o][c]);
        }
    if (finite || plain.samples == geo.sample_count()) return;  // but for box sums these are no factors
#pragma unroll 1
    for (INDEX no = of.no; no < of.no + of.count; ++no) {
        const ACC weight = load(grad_output + no * geo.y_plane() + of.p);
#pragma unroll 1
        for (int c = first; c < first + count; ++c)
            store(grad + (no * geo.channels + c) * geo.y_plane() + of.p,
                  boxed_whole(weight, plain, of.n, c, pixel.y, pixel.x, geo));
    }
}

// Gradient of spatial_kernel: a thread makes one pixel of one output channel and of TAPS taps.
__device__ __forceinline__ void spatial_kernel_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, const Plain& plain,
    T* __restrict__ grad, const Pixel& pixel, const Outputs& of, int first, const Geometry& geo) {
    const int samples = geo.sample_count(), count = min(TAPS, geo.taps() - first);
    const INDEX no = of.no;
    const Tap first_tap(first, geo);
    ACC sum[TAPS] = {};
    for (int i = 0; i < samples; ++i)
        for (int j = 0; j < samples; j += TILE) {
            const int y = of.y + geo.offset_y(i), x = of.x + geo.offset_x(j);
            const Row here(geo, y, x, samples - j);
            ACC weight[TILE];
            bool part[TILE];
#pragma unroll
            for (int k = 0; k < TILE; ++k) {
                const int s = i * samples + j + k;
                part[k] = j + k < samples && takes_part(largest, no, s, of.p, geo.y_plane());
                weight[k] = part[k] ? sample_weight(grad_output, in, of.n, no, s, of.p, geo) : ACC(0);
            }
            Tap tap = first_tap;
#pragma unroll
            for (int t = 0; t < TAPS; ++t, tap.next(geo)) {
                if (t >= count) continue;
                const Row there(geo, y + geo.tap_y(tap.a), x + geo.tap_x(tap.b), samples - j);
#pragma unroll
                for (int k = 0; k < TILE; ++k)
                    if (part[k]) sum[t] += weight[k] * tap_factor(in, of.n, no, first + t, here, there, k, geo);
            }
        }
    bool finite = true;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        if (t >= count) continue;
        store(grad + (no * geo.taps() + first + t) * geo.y_plane() + of.p, sum[t]);
        finite = finite && is_finite(sum[t]);
    }
    if (finite) return;
#pragma unroll 1
    for (int t = first; t < first + count; ++t)
        store(grad + (no * geo.taps() + t) * geo.y_plane() + of.p,
              spatial_kernel_whole(grad_output, largest, in, plain, of.n, no, t, pixel.y, pixel.x, of.p, geo));
}
