#pragma once
// The loops over channels for a kernel size known to the compiler: whole filters, or their gradients, in registers.

// z of `count` channels by up to SET atoms (`several` are left); rows of z are `columns` apart.
template <bool INSIDE>
__device__ __forceinline__ void filter_channels(
    const T* taps, const T* image, ACC* z, int count, int several, INDEX columns, const Window& window,
    const Geometry& geo) {
    ACC filter[SET][KH * KW];
#pragma unroll
    for (int s = 0; s < SET; ++s)
#pragma unroll
        for (int tap = 0; tap < KH * KW; ++tap)
            filter[s][tap] = s < several ? load(taps + (s * KH * KW + tap) * geo.outputs()) : ACC(0);
    for (int c = 0; c < count; ++c) {
        ACC total[SET] = {};
#pragma unroll
        for (int a = 0; a < KH; ++a)
#pragma unroll
            for (int b = 0; b < KW; ++b) {
                const ACC value = window.template pixel<INSIDE>(image, a, b, geo);
#pragma unroll
                for (int s = 0; s < SET; ++s) total[s] += filter[s][a * KW + b] * value;
            }
#pragma unroll
        for (int s = 0; s < SET; ++s)
            if (s < several) z[s * columns] = total[s];
        image += geo.pixels();
        z += geo.atoms * columns;
    }
}

// The gradient of up to SET atoms (`several` are left), a sum over the channels of the tile.
template <bool INSIDE>
__device__ __forceinline__ void atom_gradient(
    const ACC* grad_z, const T* image, ACC* target, int add, int, int several, const Tile& tile, const Window& window,
    const Geometry& geo) {
    const INDEX columns = tile.columns();
    ACC total[SET][KH * KW] = {};
    for (int c = 0; c < tile.channels; ++c) {
        ACC grad[SET];
#pragma unroll
        for (int s = 0; s < SET; ++s) grad[s] = s < several ? grad_z[s * columns] : ACC(0);
#pragma unroll
        for (int a = 0; a < KH; ++a)
#pragma unroll
            for (int b = 0; b < KW; ++b) {
                const ACC value = window.template pixel<INSIDE>(image, a, b, geo);
#pragma unroll
                for (int s = 0; s < SET; ++s) total[s][a * KW + b] += grad[s] * value;
            }
        image += geo.pixels();
        grad_z += geo.atoms * columns;
    }
#pragma unroll
    for (int s = 0; s < SET; ++s)
#pragma unroll
        for (int tap = 0; tap < KH * KW; ++tap)
            if (s < several) {
                ACC* place = target + (s * KH * KW + tap) * geo.outputs();
                *place = add ? *place + total[s][tap] : total[s][tap];
            }
}
