#pragma once
// dynamic_sampling: regions under their kernels, which is the forward pass and the gradient of sample_attention. A
// block has WARP pixels and as many warps as share their samples; what the warps have is put together in order.
// Included by dynamic_sampling.cu, whose names it uses.

// One thread's pixel and output channels.
struct Outputs {
    INDEX n, no, p;  // no = n * outputs + the first of them
    int y, x, count;

    __device__ __forceinline__ Outputs(const Pixel& pixel, int first, int most, const Geometry& geo)
        : n(pixel.n), no(pixel.n * geo.outputs + first), p(pixel.at), y(pixel.y * geo.stride_y),
          x(pixel.x * geo.stride_x), count(min(most, geo.outputs - first)) {}
    // Beyond the last the last again: it takes part in what is not stored.
    __device__ __forceinline__ INDEX channel(int o) const { return no + min(o, count - 1); }
};

// Where what taps of an output channel see ends, and Ap of the centre begins.
__device__ __forceinline__ INDEX centre_plane(INDEX no, const Geometry& geo) {
    return (no * (geo.taps() + 1) + geo.taps()) * geo.x_plane();
}

// Ap of the centre tap at a region centred on `at`.
__device__ __forceinline__ ACC centre_factor(const Arrays& in, INDEX no, INDEX at, const Geometry& geo) {
    if (!MARGIN) return by_position(in, no, geo.centre(), at, geo);
    return in.seen[centre_plane(no, geo) + at];
}

// What tap t of that region sees: Ap of the tap times X1, of the row `there`.
__device__ __forceinline__ ACC tap_factor(
    const Arrays& in, INDEX n, INDEX no, int t, const Row& here, const Row& there, int k, const Geometry& geo) {
    if (MARGIN) {
        const INDEX plane = in.position_attention ? no * (geo.taps() + 1) + t : n;
        return there.of(in.seen + plane * geo.x_plane(), k);
    }
    return by_position(in, no, t, here.place(k), geo) * there.of(in.seen + n * geo.x_plane(), k);
}

// TILE regions of row i of the samples, from column j on, under the kernels of COUNT output channels. Where there is
// but one sample, the warps share its channels, and what they have is to be added up.
template <int COUNT>
__device__ __forceinline__ void sum_regions(
    ACC (&value)[COUNT][TILE], const Arrays& in, const Outputs& of, int i, int j, const Geometry& geo) {
    const int y = of.y + geo.offset_y(i), x = of.x + geo.offset_x(j), wanted = geo.sample_count() - j;
    const Row here(geo, y, x, wanted);
#pragma unroll
    for (int o = 0; o < COUNT; ++o)
#pragma unroll
        for (int k = 0; k < TILE; ++k) value[o][k] = 0;
    const bool shared = SAMPLES == 1 && blockDim.y > 1;
    const int part = shared ? threadIdx.y : 0;
    const int first = shared ? share(geo.channels, part, WARPS) : 0;
    const int last = shared ? share(geo.channels, part + 1, WARPS) : geo.channels;
    const T* pixels = in.x + (of.n * geo.channels + first) * geo.x_plane();
    const T* kernels[COUNT];
#pragma unroll
    for (int o = 0; o < COUNT; ++o)
        kernels[o] = in.channel_kernel + (of.channel(o) * geo.channels + first) * geo.y_plane() + of.p;
    for (int c = first; c < last; ++c) {
        ACC pixel[TILE];
#pragma unroll
        for (int k = 0; k < TILE; ++k) pixel[k] = here.of(pixels, k);
#pragma unroll
        for (int o = 0; o < COUNT; ++o) {
            const ACC factor = load(kernels[o]);
#pragma unroll
            for (int k = 0; k < TILE; ++k) value[o][k] += factor * pixel[k];
            kernels[o] += geo.y_plane();
        }
        pixels += geo.x_plane();
    }
    if (in.position_attention) {
#pragma unroll
        for (int o = 0; o < COUNT; ++o)
#pragma unroll
            for (int k = 0; k < TILE; ++k) value[o][k] *= centre_factor(in, of.channel(o), here.place(k), geo);
    }
    if (part > 0) return;
    Tap tap(0, geo);
    for (int t = 0; t < geo.taps(); ++t, tap.next(geo)) {
        const Row there(geo, y + geo.tap_y(tap.a), x + geo.tap_x(tap.b), wanted);
#pragma unroll
        for (int o = 0; o < COUNT; ++o) {
            const ACC factor = tap_weight(in, of.channel(o), t, of.p, geo);
#pragma unroll
            for (int k = 0; k < TILE; ++k)
                value[o][k] += factor * tap_factor(in, of.n, of.channel(o), t, here, there, k, geo);
        }
    }
}

// What each warp of a block has of its outputs.
struct Parts {
    ACC fused[WARPS][OUTPUTS][WARP];
    int which[FUSE == 1 ? WARPS : 1][OUTPUTS][WARP];  // the sample that the maximum comes from, or -1
    ACC doubt[FUSE == 0 ? 1 : WARPS][WARP];           // zero, or NaN if a region is not finite
};

// Forward, the samples of one warp.
template <int COUNT>
__device__ __forceinline__ void fuse_part(
    Parts& parts, const Arrays& in, T* __restrict__ y, const Outputs& of, const Geometry& geo) {
    const int warp = threadIdx.y, samples = geo.sample_count();
    const int begin = SAMPLES == 1 ? 0 : share(samples, warp, WARPS);
    const int end = SAMPLES == 1 ? 1 : share(samples, warp + 1, WARPS);
    ACC fused[COUNT] = {}, doubt = 0;
    int which[COUNT];
#pragma unroll
    for (int o = 0; o < COUNT; ++o) which[o] = -1;
    for (int i = begin; i < end; ++i)
        for (int j = 0; j < samples; j += TILE) {
            ACC value[COUNT][TILE];
            sum_regions(value, in, of, i, j, geo);
#pragma unroll
            for (int o = 0; o < COUNT; ++o)
#pragma unroll
                for (int k = 0; k < TILE; ++k) {
                    if (j + k >= samples) continue;
                    const int s = i * samples + j + k;
                    const ACC z = value[o][k] * by_sample(in, of.channel(o), s, of.p, geo);
                    if (FUSE == 0) fused[o] += z;
                    if (FUSE != 0) doubt += value[o][k] * ACC(0);
                    if (FUSE == 1 && (which[o] < 0 || is_larger(z, fused[o]))) {
                        fused[o] = z;
                        which[o] = s;
                    }
                    if (FUSE == 2 && o < of.count) store(y + stacked(of.n, of.no + o, s, geo) + of.p, z);
                }
        }
#pragma unroll
    for (int o = 0; o < COUNT; ++o) {
        parts.fused[warp][o][threadIdx.x] = fused[o];
        if (FUSE == 1) parts.which[warp][o][threadIdx.x] = which[o];
    }
    if (FUSE != 0) parts.doubt[warp][threadIdx.x] = doubt;
}

// Forward, put together: a warp has an output channel. `largest` gets the sample that a maximum comes from.
__device__ __forceinline__ void fuse_parts(
    const Parts& parts, const Arrays& in, const Plain& plain, T* __restrict__ y, int* __restrict__ largest,
    const Pixel& pixel, const Outputs& of, const Geometry& geo) {
    for (int o = threadIdx.y; o < of.count; o += WARPS) {
        ACC fused = 0, doubt = 0;
        int which = -1;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            const ACC value = parts.fused[warp][o][threadIdx.x];
            if (FUSE == 0) fused += value;
            if (FUSE != 0) doubt += parts.doubt[warp][threadIdx.x];
            const int sample = FUSE == 1 ? parts.which[warp][o][threadIdx.x] : -1;
            if (sample >= 0 && (which < 0 || is_larger(value, fused))) {
                fused = value;
                which = sample;
            }
        }
        const INDEX at = (of.no + o) * geo.y_plane() + of.p;
        if (FUSE != 2) store(y + at, fused);
        if (FUSE == 1) largest[at] = which;
        if (!is_finite(FUSE == 0 ? fused : doubt))
            fuse_whole(in, plain, y, largest, of.n, of.no + o, pixel.y, pixel.x, of.p, geo);
    }
}

// Gradient of sample_attention: the regions once more, times grad_output.
template <int COUNT>
__device__ __forceinline__ void sample_attention_gradient(
    const T* __restrict__ grad_output, const int* __restrict__ largest, const Arrays& in, const Plain& plain,
    T* __restrict__ grad, const Pixel& pixel, const Outputs& of, const Geometry& geo) {
    const int samples = geo.sample_count();
    Arrays bare = in;
    bare.sample_attention = nullptr;
    const int begin = SAMPLES == 1 ? 0 : share(samples, threadIdx.y, WARPS);
    const int end = SAMPLES == 1 ? 1 : share(samples, threadIdx.y + 1, WARPS);
    for (int i = begin; i < end; ++i)
        for (int j = 0; j < samples; j += TILE) {
            ACC value[COUNT][TILE], doubt = 0;
            sum_regions(value, in, of, i, j, geo);
#pragma unroll
            for (int o = 0; o < COUNT; ++o)
#pragma unroll
                for (int k = 0; k < TILE; ++k) {
                    const int s = i * samples + j + k;
                    if (j + k >= samples || o >= of.count) continue;
                    const bool part = takes_part(largest, of.no + o, s, of.p, geo.y_plane());
                    const ACC weight = part ? sample_weight(grad_output, bare, of.n, of.no + o, s, of.p, geo) : ACC(0);
                    store(grad + ((of.no + o) * geo.regions() + s) * geo.y_plane() + of.p,
                          part ? weight * value[o][k] : ACC(0));
                    doubt += value[o][k] * ACC(0);
                }
            if (is_finite(doubt)) continue;
#pragma unroll 1
            for (INDEX no = of.no; no < of.no + of.count; ++no)
#pragma unroll 1
                for (int s = i * samples + j; s < i * samples + min(j + TILE, samples); ++s)
                    sample_attention_whole(
                        grad_output, largest, bare, plain, grad, of.n, no, s, pixel.y, pixel.x, of.p, geo);
        }
}
