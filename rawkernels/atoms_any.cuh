#pragma once
// The loops over channels for any kernel size, with one atom a thread: STRIP channels, or taps, at once.

// z of `count` channels by one atom; rows of z are `columns` apart.
template <bool INSIDE>
__device__ __forceinline__ void filter_channels(
    const T* taps, const T* image, ACC* z, int count, int, INDEX columns, const Window& window, const Geometry& geo) {
    for (int first = 0; first < count; first += STRIP) {
        ACC total[STRIP] = {};
        const T* atom = taps;
        for (int a = 0; a < geo.kernel_h; ++a)
            for (int b = 0; b < geo.kernel_w; ++b, atom += geo.outputs()) {
                const ACC factor = load(atom);
#pragma unroll
                for (int s = 0; s < STRIP; ++s)
                    if (first + s < count)
                        total[s] += factor * window.template pixel<INSIDE>(image + s * geo.pixels(), a, b, geo);
            }
#pragma unroll
        for (int s = 0; s < STRIP; ++s)
            if (first + s < count) z[s * geo.atoms * columns] = total[s];
        image += STRIP * geo.pixels();
        z += STRIP * geo.atoms * columns;
    }
}

// The gradient of STRIP taps of one atom, a sum over the channels of the tile.
template <bool INSIDE>
__device__ __forceinline__ void atom_gradient(
    const ACC* grad_z, const T* image, ACC* target, int add, int first, int, const Tile& tile, const Window& window,
    const Geometry& geo) {
    ACC total[STRIP] = {};
    for (int c = 0; c < tile.channels; ++c) {
        int a = first / geo.kernel_w, b = first % geo.kernel_w;
#pragma unroll
        for (int s = 0; s < STRIP; ++s) {
            if (first + s < geo.taps()) total[s] += *grad_z * window.template pixel<INSIDE>(image, a, b, geo);
            if (++b == geo.kernel_w) {
                b = 0;
                ++a;
            }
        }
        image += geo.pixels();
        grad_z += geo.atoms * tile.columns();
    }
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
        if (first + s < geo.taps()) {
            ACC* place = target + (first + s) * geo.outputs();
            *place = add ? *place + total[s] : total[s];
        }
}
