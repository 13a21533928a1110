// atoms: a filter per output pixel, composed of a few atoms that all channels share. Forward and its gradients.
//
//   x (N,C,H,W)  atoms (N,M,kh,kw,Ho,Wo)  coefficients (O,C,M)  bias (O) or absent  y (N,O,Ho,Wo)
//   z[n,c,m,p] = sum over taps (a,b) of atoms[n,m,a,b,p] * x[n,c,q]
//   y[n,o,p]   = bias[o] + sum over c, m of coefficients[o,c,m] * z[n,c,m,p]
//   q = (h*s_y - pad_y + a*d_y, w*s_x - pad_x + b*d_x)
//
// The sums over c, m and o are matrix products, which the Python side (atoms.py) hands to cuBLAS. For them z is made
// in tiles: some channels, samples and positions, as a matrix with a row for each (c, m) and a column for each
// (n, p), in the accumulator type. The kernels here make z, bring y and its gradient into that order and back, and
// take the gradient of z on to x and atoms. z is made again for the backward pass.
//
// How work is laid out. Consecutive threads take consecutive columns, so that a warp reads and writes adjacent
// addresses. A thread keeps the taps of SET atoms of its position in registers and applies them to a chunk of
// channels: a pixel loaded serves SET multiply-adds, an atom a whole chunk. For z that is, per element at k = 3 and
// SET = 3, 3 loads, 9 multiply-adds and one store of 4 bytes; the store is the bound (the tile stays in the L2 cache
// until the matrix product reads it). The gradient of atoms is the same loop with the sums in the registers. The
// gradient of x gathers: a thread takes STRIP channels of one pixel and, tap by tap, the positions that read it.
//
// Outside the image x is 0, and that zero takes part in products: an infinite atom there gives NaN.
// The gradient of x sums over existing positions only. No kernel uses atomics: equal inputs, equal bits.
//
// Constants from the Python side (atoms.py explains the choice):
//   KH, KW   kernel size, or 0: any size, known at run time
//   SET      atoms of a thread; 1 with any size
#ifndef KH
#define KH 3
#define KW 3
#define SET 3
#endif
#include "common.cuh"

constexpr int STRIP = 8;  // channels, or taps, that a thread works on at once where registers hold no whole filter

struct Geometry {
    int channels, atoms;        // C, M
    int height, width;          // of x
    int out_height, out_width;  // of y
    int kernel_h, kernel_w;
    int stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;

    __device__ __forceinline__ int taps() const { return kernel_h * kernel_w; }
    __device__ __forceinline__ INDEX outputs() const { return static_cast<INDEX>(out_height) * out_width; }
    __device__ __forceinline__ INDEX pixels() const { return static_cast<INDEX>(height) * width; }
};

// Which part of the call a tile is: its rows are channels (each M times), its columns positions of samples.
struct Tile {
    int sample, samples, position, positions, channel, channels;

    __device__ __forceinline__ INDEX columns() const { return static_cast<INDEX>(positions) * samples; }
};

// The pixels that the taps read for one position.
struct Window {
    int y, x;     // of tap (0, 0)
    bool inside;  // all of them are

    __device__ __forceinline__ Window(int position, const Geometry& geo) {
        const int row = position / geo.out_width;
        y = row * geo.stride_y - geo.pad_y;
        x = (position - row * geo.out_width) * geo.stride_x - geo.pad_x;
        inside = y >= 0 && y + (geo.kernel_h - 1) * geo.dilation_y < geo.height && x >= 0 &&
                 x + (geo.kernel_w - 1) * geo.dilation_x < geo.width;
    }

    // What tap (a, b) reads of one channel.
    template <bool INSIDE>
    __device__ __forceinline__ ACC pixel(const T* channel, int a, int b, const Geometry& geo) const {
        const int row = y + a * geo.dilation_y, column = x + b * geo.dilation_x;
        if (!INSIDE && (row < 0 || row >= geo.height || column < 0 || column >= geo.width)) return ACC(0);
        return load(channel + static_cast<INDEX>(row) * geo.width + column);
    }
};

#if KH > 0
#include "atoms_sized.cuh"
#else
#include "atoms_any.cuh"
#endif

// The kernels. `items` counts threads, except in atoms_grad_bases: warps.

// z of a tile, (channels, M, columns). A thread takes SET atoms and `chunk` channels of one column.
extern "C" __global__ void __launch_bounds__(128, 3) atoms_filter(
    const T* __restrict__ x, const T* __restrict__ atoms, ACC* __restrict__ z, INDEX items, int chunk, int sample,
    int samples, int position, int positions, int channel, int tile_channels, int channels, int atom_count, int height,
    int width, int out_height, int out_width, int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y,
    int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, atom_count, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    const Tile tile = {sample, samples, position, positions, channel, tile_channels};
    INDEX rest = thread_index();
    if (rest >= items) return;
    const INDEX column = take(rest, tile.columns());
    const int first_atom = static_cast<int>(take(rest, (geo.atoms + SET - 1) / SET)) * SET;
    const int first = static_cast<int>(rest) * chunk, end = min(first + chunk, tile.channels);
    const int n = tile.sample + static_cast<int>(column / tile.positions);
    const int p = tile.position + static_cast<int>(column % tile.positions);
    const T* taps = atoms + (static_cast<INDEX>(n) * geo.atoms + first_atom) * geo.taps() * geo.outputs() + p;
    const T* image = x + (static_cast<INDEX>(n) * geo.channels + tile.channel + first) * geo.pixels();
    ACC* target = z + (static_cast<INDEX>(first) * geo.atoms + first_atom) * tile.columns() + column;
    const Window window(p, geo);
    if (window.inside)
        filter_channels<true>(taps, image, target, end - first, geo.atoms - first_atom, tile.columns(), window, geo);
    else
        filter_channels<false>(taps, image, target, end - first, geo.atoms - first_atom, tile.columns(), window, geo);
}

// Gradient of the atoms (N, M, taps, positions) from grad_z of a tile; with `add`, the other channels have been before.
extern "C" __global__ void __launch_bounds__(128, 3) atoms_grad_atoms(
    const ACC* __restrict__ grad_z, const T* __restrict__ x, ACC* __restrict__ grad_atoms, INDEX items, int add,
    int sample, int samples, int position, int positions, int channel, int tile_channels, int channels, int atom_count,
    int height, int width, int out_height, int out_width, int kernel_h, int kernel_w, int stride_y, int stride_x,
    int dilation_y, int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, atom_count, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    const Tile tile = {sample, samples, position, positions, channel, tile_channels};
    INDEX rest = thread_index();
    if (rest >= items) return;
    const INDEX column = take(rest, tile.columns());
    const int first_atom = static_cast<int>(take(rest, (geo.atoms + SET - 1) / SET)) * SET;
    const int first_tap = static_cast<int>(rest) * STRIP;  // with any size
    const int n = tile.sample + static_cast<int>(column / tile.positions);
    const int p = tile.position + static_cast<int>(column % tile.positions);
    const ACC* grads = grad_z + static_cast<INDEX>(first_atom) * tile.columns() + column;
    const T* image = x + (static_cast<INDEX>(n) * geo.channels + tile.channel) * geo.pixels();
    ACC* target = grad_atoms + (static_cast<INDEX>(n) * geo.atoms + first_atom) * geo.taps() * geo.outputs() + p;
    const Window window(p, geo);
    if (window.inside)
        atom_gradient<true>(grads, image, target, add, first_tap, geo.atoms - first_atom, tile, window, geo);
    else
        atom_gradient<false>(grads, image, target, add, first_tap, geo.atoms - first_atom, tile, window, geo);
}

// Gradient of x from grad_z of a tile with all positions. A thread takes STRIP channels of one pixel.
extern "C" __global__ void __launch_bounds__(128, 4) atoms_grad_x(
    const ACC* __restrict__ grad_z, const T* __restrict__ atoms, T* __restrict__ grad_x, INDEX items, int sample,
    int samples, int position, int positions, int channel, int tile_channels, int channels, int atom_count, int height,
    int width, int out_height, int out_width, int kernel_h, int kernel_w, int stride_y, int stride_x, int dilation_y,
    int dilation_x, int pad_y, int pad_x) {
    const Geometry geo = {channels, atom_count, height, width, out_height, out_width, kernel_h, kernel_w,
                          stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x};
    const Tile tile = {sample, samples, position, positions, channel, tile_channels};
    INDEX rest = thread_index();
    if (rest >= items) return;
    const INDEX pixel = take(rest, geo.pixels());
    const int local = static_cast<int>(take(rest, tile.samples));
    const int first = static_cast<int>(rest) * STRIP, several = min(STRIP, tile.channels - first);
    const int n = tile.sample + local;
    const int y = static_cast<int>(pixel / geo.width), x = static_cast<int>(pixel % geo.width);
    const INDEX between = geo.atoms * tile.columns();  // channels of grad_z
    ACC total[STRIP] = {};
    for (int a = 0; a < geo.kernel_h; ++a) {
        const int row = y + geo.pad_y - a * geo.dilation_y, h = row / geo.stride_y;
        if (row < 0 || h * geo.stride_y != row || h >= geo.out_height) continue;
        for (int b = 0; b < geo.kernel_w; ++b) {
            const int col = x + geo.pad_x - b * geo.dilation_x, w = col / geo.stride_x;
            if (col < 0 || w * geo.stride_x != col || w >= geo.out_width) continue;
            const INDEX p = static_cast<INDEX>(h) * geo.out_width + w;
            const INDEX tap = static_cast<INDEX>(n) * geo.atoms * geo.taps() + a * geo.kernel_w + b;
            const ACC* grads = grad_z + first * between + static_cast<INDEX>(local) * tile.positions + p;
            for (int m = 0; m < geo.atoms; ++m) {
                const ACC atom = load(atoms + (tap + m * geo.taps()) * geo.outputs() + p);
#pragma unroll
                for (int s = 0; s < STRIP; ++s)
                    if (s < several) total[s] += atom * grads[s * between + m * tile.columns()];
            }
        }
    }
    T* target = grad_x + (static_cast<INDEX>(n) * geo.channels + tile.channel + first) * geo.pixels() + pixel;
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
        if (s < several) store(target + s * geo.pixels(), total[s]);
}

// A product (O, columns) to where it belongs in y (N, O, outputs), plus bias.
extern "C" __global__ void __launch_bounds__(128, 8) atoms_place(
    const ACC* __restrict__ product, const T* __restrict__ bias, T* __restrict__ y, INDEX items, int rows, int outputs,
    int sample, int samples, int position, int positions) {
    INDEX rest = thread_index();
    if (rest >= items) return;
    const ACC value = product[rest];
    const INDEX p = position + take(rest, positions), n = sample + take(rest, samples);
    store(y + (n * rows + rest) * outputs + p, bias ? value + load(bias + rest) : value);
}

// The reverse: the gradient of y as a matrix (O, columns).
extern "C" __global__ void __launch_bounds__(128, 8) atoms_collect(
    const T* __restrict__ grad_output, ACC* __restrict__ grads, INDEX items, int rows, int outputs, int sample,
    int samples, int position, int positions) {
    INDEX rest = thread_index();
    if (rest >= items) return;
    ACC* target = grads + rest;
    const INDEX p = position + take(rest, positions), n = sample + take(rest, samples);
    *target = load(grad_output + (n * rows + rest) * outputs + p);
}

// target[i, t, p] = sum over s of matrix[s, t] * source[i, s, p]: atoms of alpha and bases, or the gradient of alpha of
// that of the atoms and the transposed bases. A thread takes STRIP rows t.
extern "C" __global__ void __launch_bounds__(128, 4) atoms_compose(
    const T* __restrict__ source, const T* __restrict__ matrix, T* __restrict__ target, INDEX items, int depth,
    int rows, int positions) {
    INDEX rest = thread_index();
    if (rest >= items) return;
    const INDEX p = take(rest, positions);
    const int first = static_cast<int>(take(rest, (rows + STRIP - 1) / STRIP)) * STRIP;
    const T* values = source + rest * depth * positions + p;
    ACC total[STRIP] = {};
    for (int s = 0; s < depth; ++s) {
        const ACC value = load(values + static_cast<INDEX>(s) * positions);
#pragma unroll
        for (int t = 0; t < STRIP; ++t)
            if (first + t < rows) total[t] += value * load(matrix + s * rows + first + t);
    }
    T* results = target + (rest * rows + first) * positions + p;
#pragma unroll
    for (int t = 0; t < STRIP; ++t)
        if (first + t < rows) store(results + static_cast<INDEX>(t) * positions, total[t]);
}

// partial[slot, s, t]: one slot's part of the sum over i, p of alpha[i, s, p] * grad[i, t, p]. A warp takes STRIP t.
extern "C" __global__ void __launch_bounds__(128, 4) atoms_grad_bases(
    const T* __restrict__ alpha, const T* __restrict__ grad, ACC* __restrict__ partial, INDEX items, INDEX count,
    int slots, int bases, int taps, int positions) {
    INDEX rest = thread_index() / WARP;
    if (rest >= items) return;  // whole warps
    const int first = static_cast<int>(take(rest, (taps + STRIP - 1) / STRIP)) * STRIP;
    const int s = static_cast<int>(take(rest, bases)), lane = threadIdx.x % WARP;
    const INDEX each = (count + slots - 1) / slots, end = min(count, (rest + 1) * each);
    ACC total[STRIP] = {};
    for (INDEX at = rest * each + lane; at < end; at += WARP) {
        const INDEX i = at / positions, p = at - i * positions;
        const ACC value = load(alpha + (i * bases + s) * positions + p);
#pragma unroll
        for (int t = 0; t < STRIP; ++t)
            if (first + t < taps) total[t] += value * load(grad + (i * taps + first + t) * positions + p);
    }
#pragma unroll
    for (int t = 0; t < STRIP; ++t) {
#pragma unroll
        for (int half = WARP / 2; half > 0; half /= 2) total[t] += __shfl_xor_sync(ALL_LANES, total[t], half);
        if (lane == 0 && first + t < taps) partial[(rest * bases + s) * taps + first + t] = total[t];
    }
}

// Add up slots in order.
extern "C" __global__ void __launch_bounds__(128, 8) atoms_sum_slots(
    const ACC* __restrict__ partial, T* __restrict__ total, INDEX count, int slots) {
    const INDEX i = thread_index();
    if (i >= count) return;
    ACC sum = 0;
    for (int slot = 0; slot < slots; ++slot) sum += partial[slot * count + i];
    store(total + i, sum);
}
