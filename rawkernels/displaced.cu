// displaced: units that read a blurred image at learned, fractional displacements. Forward and its gradients.
//
//   x (N,C,H,W)  weight (O,C,G)  displacement (O,C,G,2)  y (N,O,H,W);  xb = x blurred, zero outside the image
//   y[n,o,p] = bias[o] + sum over c and g of weight[o,c,g] * bilinear(xb[n,c], p + displacement[o,c,g])
//
// Order of the kernels. displaced_taps makes the taps of the blur from sigma; displaced_blur_* blur along one axis;
// displaced_forward then makes y. Backward, displaced_grad_blurred is the same sum with channels exchanged and
// displacements turned round, and its result is blurred; displaced_correlate makes four sums per unit, from which
// displaced_grad_units makes the gradients of weight and displacement. Where there are too few tiles and targets to fill
// a GPU, blocks share the sources of a sum, and displaced_add_* adds up what they found.
//
// How work is laid out. A block has one tile of TILE_ROWS x TILE_COLUMNS pixels, and each of its warps one target channel;
// a lane has a patch of PATCH_ROWS x PATCH_COLUMNS pixels. Source channels are staged in shared memory with an apron as
// wide as the units of the block lead: it looks at them before, so that nobody else need know. The wider the apron, the
// fewer channels are staged between two barriers. Units that lead beyond the widest apron read global memory; a warp has
// one unit at a time, so that no branch splits it.
// A row of a patch needs PATCH_COLUMNS + 1 pixels. Interpolated along the row they serve two rows of the output: with
// 7 x 4 pixels a unit takes 40 words from shared memory, 64 operations along the rows and 84 between them: 1.4 and 5.3 a
// pixel, of which an SM does 32 and 128 in a cycle. Patches are an odd number of rows high, and rows in shared memory an odd number of words apart, so
// that the rows of lanes begin at different banks modulo 4, and lanes of one row are 4 words apart: no two lanes meet in
// a bank. A line, an image of one row, has patches of 9 pixels side by side: an odd number again.
//
// No kernel uses atomics: equal inputs, equal bits. Long sums end in double, in fixed order. Those over units are made in
// parts of some sources, which add up in memory where the result is to be: registers hold no second sum of a patch.
//
// Constants from the Python side:  PATCH_ROWS  1 for lines, else an odd number
#ifndef PATCH_ROWS
#define PATCH_ROWS 7
#endif
#include "common.cuh"

constexpr int WARPS = 8, THREADS = WARPS * WARP;
constexpr bool LINE = PATCH_ROWS == 1;
constexpr int PATCH_COLUMNS = LINE ? 9 : 4, PATCH = PATCH_ROWS * PATCH_COLUMNS;
constexpr int LANES_ACROSS = LINE ? 32 : 8, LANES_DOWN = WARP / LANES_ACROSS;
constexpr int TILE_COLUMNS = LANES_ACROSS * PATCH_COLUMNS, TILE_ROWS = LANES_DOWN * PATCH_ROWS;
constexpr int UNIT_ROWS = LINE ? 1 : PATCH_ROWS + 1;  // that a unit reads for a patch
constexpr int CORNERS = 4;
static_assert(PATCH_ROWS % 2 == 1, "for the banks of shared memory");

__device__ __forceinline__ ACC read(const T* address) { return load(address); }
__device__ __forceinline__ void write(T* address, ACC value) { store(address, value); }
#if defined(SCALAR_IS_HALF) || defined(SCALAR_IS_BFLOAT16)
__device__ __forceinline__ ACC read(const ACC* address) { return *address; }
__device__ __forceinline__ void write(ACC* address, ACC value) { *address = value; }
#endif

// Sum over a block of THREADS threads, in the order of the threads, the same for all of them.
__device__ __forceinline__ double block_total(double value) {
    __shared__ double part[THREADS];
    __syncthreads();
    part[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    return part[0];
}

// ---- the blur ------------------------------------------------------------------------------------------------------

// Taps -radius..radius of the normalised Gaussian, then their derivatives by sigma, then by place. One block.
extern "C" __global__ void __launch_bounds__(256) displaced_taps(ACC* __restrict__ taps, double sigma, int radius) {
    const int count = 2 * radius + 1;
    double bells = 0, squares = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const double place = (i - radius) / sigma, bell = exp(-place * place / 2);
        bells += bell;
        squares += bell > 0 ? bell * place * place : 0;
    }
    bells = block_total(bells);
    squares = block_total(squares) / bells;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const double place = (i - radius) / sigma, tap = exp(-place * place / 2) / bells;
        taps[i] = static_cast<ACC>(tap);
        taps[count + i] = static_cast<ACC>(tap > 0 ? tap * (place * place - squares) / sigma : 0);
        taps[2 * count + i] = static_cast<ACC>(tap > 0 ? tap * place / sigma : 0);
    }
}

// Correlation along one axis, of an image of `planes` planes. A thread has up to RUN pixels, one below the other, and
// divides for all of them; blurred along rows, these may be of several planes.
constexpr int RUN = 8;

template <bool DOWN, class In, class Out>
__device__ __forceinline__ void blur_along(const In* __restrict__ image, const ACC* __restrict__ taps,
                                           Out* __restrict__ result, INDEX planes, int height, int width, int radius) {
    INDEX flat = thread_index();
    const int column = take(flat, width), row = DOWN ? RUN * take(flat, (height + RUN - 1) / RUN) : 0;
    const INDEX line = DOWN ? flat * height + row : flat * RUN, left = planes * height - line;
    if (left <= 0) return;
    const int count = DOWN ? min(RUN, height - row) : static_cast<int>(min(static_cast<INDEX>(RUN), left));
    const int place = DOWN ? row : column, extent = DOWN ? height : width;
    const INDEX start = line * width + column, step = DOWN ? width : 1;
    ACC sum[RUN] = {};
    auto add = [&](int j) {
        const ACC tap = taps[radius + j];
        const In* source = image + start + j * step;
#pragma unroll
        for (int k = 0; k < RUN; ++k, source += width) {
            const int from = place + (DOWN ? k : 0) + j;
            if (k < count && from >= 0 && from < extent) sum[k] += tap * read(source);
        }
    };
    for (int j = min(radius, extent - 1); j > 0; --j) {  // the large terms last: less is rounded off
        add(-j);
        add(j);
    }
    add(0);
    Out* to = result + start;
#pragma unroll
    for (int k = 0; k < RUN; ++k, to += width)
        if (k < count) write(to, sum[k]);
}

template <class In, class Out>
__device__ __forceinline__ void blur(const In* __restrict__ image, const ACC* __restrict__ taps, Out* __restrict__ result,
                                     INDEX planes, int height, int width, int radius, int down) {
    if (down)
        blur_along<true>(image, taps, result, planes, height, width, radius);
    else
        blur_along<false>(image, taps, result, planes, height, width, radius);
}

extern "C" __global__ void __launch_bounds__(256, 2) displaced_blur_first(
    const T* __restrict__ image, const ACC* __restrict__ taps, ACC* __restrict__ result, INDEX planes, int height,
    int width, int radius, int down) {
    blur(image, taps, result, planes, height, width, radius, down);
}

extern "C" __global__ void __launch_bounds__(256, 2) displaced_blur_second(
    const ACC* __restrict__ image, const ACC* __restrict__ taps, ACC* __restrict__ result, INDEX planes, int height,
    int width, int radius, int down) {
    blur(image, taps, result, planes, height, width, radius, down);
}

extern "C" __global__ void __launch_bounds__(256, 2) displaced_blur_last(
    const ACC* __restrict__ image, const ACC* __restrict__ taps, T* __restrict__ result, INDEX planes, int height,
    int width, int radius, int down) {
    blur(image, taps, result, planes, height, width, radius, down);
}

// ---- the sum over units --------------------------------------------------------------------------------------------

#include "displaced_units.cuh"

// One addition to each sum: there may be thousands of units, and what is rounded off grows with the additions.
template <class Rows>
__device__ __forceinline__ void add_unit(Rows rows, const Factors& unit, ACC (&sum)[PATCH]) {
    ACC above[PATCH_COLUMNS];
#pragma unroll
    for (int i = 0; i < UNIT_ROWS; ++i) {
        ACC pixel[PATCH_COLUMNS + 1];
        rows.next(pixel);
#pragma unroll
        for (int j = 0; j < PATCH_COLUMNS; ++j) {
            const ACC between = unit.left * pixel[j] + unit.right * pixel[j + 1];
            if (LINE) sum[j] += unit.upper * between;
            if (i > 0) sum[(i - 1) * PATCH_COLUMNS + j] += above[j] + unit.lower * between;
            above[j] = unit.upper * between;
        }
    }
}

// The units of a warp that it goes through next.
struct List {
    Lead lead[WARP];
    Factors factors[WARP];

    // That of this lane: whether there is one, and it leads beyond the apron. `first` is where sources are counted from.
    __device__ __forceinline__ bool fill(const Units& units, INDEX target, INDEX first, int count, const Tile& tile,
                                         const Cursor& cursor) {
        if (cursor.source >= count) return false;
        const INDEX unit = units.index(target, first + cursor.source, cursor.g);
        const Place place = units.place(unit, tile.height, tile.width);
        lead[threadIdx.x % WARP] = lead_to(place, cursor.source, tile);
        factors[threadIdx.x % WARP] = make_factors(load(units.weight + unit), place);
        return !tile.near(place);
    }
};

// Add the units that lead from a target to the `count` sources in shared memory; see add_far_units for others.
__device__ __forceinline__ void add_units(const Units& units, INDEX target, INDEX first, int count, const Tile& tile,
                                          const ACC* held, List& list, Cursor cursor, ACC (&sum)[PATCH]) {
    const ACC* own = held + lane_row() * tile.pitch() + lane_column();
    const int all = count * units.per_pair;
    for (int start = 0; start < all; start += WARP, cursor.advance()) {
        __syncwarp();
        list.fill(units, target, first, count, tile, cursor);
        __syncwarp();
        for (int k = 0; k < min(WARP, all - start); ++k) {
            const int at = list.lead[k].at;
            if (at >= 0) add_unit(NearRows{own + at, tile.pitch()}, list.factors[k], sum);
        }
    }
}

// Add those that lead beyond the apron, to `count` sources of which `image` is the first. They are rare, and have a loop
// of their own so that they take no registers from the others.
template <class In>
__device__ __forceinline__ void add_far_units(const In* __restrict__ image, const Units& units, INDEX target, INDEX first,
                                              int count, const Tile& tile, ACC* strip, List& list, Cursor cursor,
                                              ACC (&sum)[PATCH]) {
    for (int start = 0; start < count * units.per_pair; start += WARP, cursor.advance()) {
        __syncwarp();
        const unsigned far = __ballot_sync(ALL_LANES, list.fill(units, target, first, count, tile, cursor));
        __syncwarp();
        for (int k = 0; k < WARP; ++k) {
            if (!(far >> k & 1)) continue;
            add_unit(FarRows<In>{image, tile, list.lead[k], strip}, list.factors[k], sum);
        }
    }
}

// The sum for one pixel as the definition says; `image` are the sources. NaN stays NaN whatever is added.
template <class In>
__device__ __forceinline__ ACC defined_sum(const In* __restrict__ image, const Units& units, INDEX target, int row,
                                           int column, const Tile& tile) {
    ACC sum = 0;
    for (int k = 0; k < units.sources * units.per_pair && sum == sum; ++k) {
        const INDEX source = k / units.per_pair, unit = units.index(target, source, k % units.per_pair);
        const Place place = units.place(unit, tile.height, tile.width);
        ACC pixel[CORNERS];
#pragma unroll
        for (int i = 0; i < CORNERS; ++i) {
            const int y = row + place.y + i / 2, x = column + place.x + i % 2;
            const In* plane = image + source * tile.plane();
            pixel[i] = tile.inside(y, x) ? read(plane + static_cast<INDEX>(y) * tile.width + x) : ACC(0);
        }
        sum += load(units.weight + unit) * ((1 - place.ly) * ((1 - place.lx) * pixel[0] + place.lx * pixel[1]) +
                                            place.ly * ((1 - place.lx) * pixel[2] + place.lx * pixel[3]));
    }
    return sum;
}

// What blocks make, y or the gradient of the blurred image.
template <class In, class Out>
struct Result {
    const In* image;
    const T* base;  // added to the sums of each target; or null
    Out* values;    // (N, targets, H, W)
    ACC* sums;      // the same of some sources, where blocks share those of a sum, or 16 bits cannot hold a part; or null
    INDEX items;    // in the sums of one block

    __device__ __forceinline__ ACC start(int target) const { return base ? load(base + target) : ACC(0); }
    __device__ __forceinline__ INDEX first(const Units& units, int target, const Tile& tile) const {
        return (static_cast<INDEX>(tile.image) * units.targets + target) * tile.plane();
    }

    // A pixel again whose value is not finite: sums of other parts can be NaN where the defined one is not.
    __device__ __forceinline__ void define(const Units& units, int target, int y, int x, const Tile& tile) const {
        const ACC sum = defined_sum(image + static_cast<INDEX>(tile.image) * units.sources * tile.plane(), units, target,
                                    y, x, tile);
        write(values + first(units, target, tile) + static_cast<INDEX>(y) * tile.width + x, start(target) + sum);
    }

    // Where the parts of a sum add up.
    template <class Narrow>
    static __device__ __forceinline__ ACC* place_of_parts(Narrow*) { return nullptr; }
    static __device__ __forceinline__ ACC* place_of_parts(ACC* values) { return values; }

    // What a warp has found of a part, the first or another, the last or not, row after row of its patches through `strip`.
    __device__ __forceinline__ void put(const ACC (&sum)[PATCH], const Units& units, int target, const Tile& tile,
                                        ACC* strip, bool begins, bool ends) const {
        const INDEX own = first(units, target, tile), slot = sums ? blockIdx.z * items : 0;
        const ACC begin = start(target);
        ACC* parts = sums ? sums : place_of_parts(values);
        const bool whole = ends && gridDim.z == 1;
        bool finite = true;
#pragma unroll
        for (int i = 0; i < PATCH_ROWS; ++i) {
            __syncwarp();
#pragma unroll
            for (int j = 0; j < PATCH_COLUMNS; ++j) strip[strip_start() + j] = sum[i * PATCH_COLUMNS + j];
            __syncwarp();
#pragma unroll
            for (int number = 0; number < PATCH_COLUMNS; ++number) {
                const StripPixel pixel(number, i, tile);
                if (!tile.inside(pixel.y, pixel.x)) continue;
                ACC value = strip[pixel.at];
                const INDEX place = own + static_cast<INDEX>(pixel.y) * tile.width + pixel.x;
                if (!begins) value += parts[slot + place];
                if (whole) {
                    write(values + place, begin + value);
                    finite = finite && value - value == 0;
                } else {
                    parts[slot + place] = value;
                }
            }
        }
        if (finite) return;
#pragma unroll 1
        for (int k = 0; k < PATCH; ++k) {
            const StripPixel pixel(k % PATCH_COLUMNS, k / PATCH_COLUMNS, tile);
            if (!tile.inside(pixel.y, pixel.x)) continue;
            const ACC value = read(values + own + static_cast<INDEX>(pixel.y) * tile.width + pixel.x);
            if (!(value - value == 0)) define(units, target, pixel.y, pixel.x, tile);
        }
    }
};

// Blocks: (tile, WARPS targets, `chunk` sources, of which `part` at a time).
template <class In, class Out>
__device__ __forceinline__ void displace(const Result<In, Out>& result, const Units& units, int chunk, int part, Tile tile) {
    __shared__ ACC held[SHARED];
    __shared__ List list[WARPS];
    const int warp = threadIdx.x / WARP, target = blockIdx.y * WARPS + warp;
    const int begin = blockIdx.z * chunk, end = min(begin + chunk, units.sources);
    const Cursor cursor(units.per_pair);
    ACC* strip = held + CAPACITY + warp * STRIP;
    tile.find(blockIdx.x);
    tile.find_apron(units, target, begin, end);
    for (int start = begin; start < end; start += part) {
        const int stop = min(start + part, end);
        ACC sum[PATCH] = {};
        for (int first = start; first < stop; first += tile.together) {
            const int count = min(tile.together, stop - first);
            tile.recall();
            const INDEX plane = static_cast<INDEX>(tile.image) * units.sources + first;
            stage(result.image, plane, count, tile, held);
            if (target < units.targets) add_units(units, target, first, count, tile, held, list[warp], cursor, sum);
        }
        if (target >= units.targets) continue;
        tile.recall();
        const In* image = result.image + (static_cast<INDEX>(tile.image) * units.sources + start) * tile.plane();
        if (tile.beyond) add_far_units(image, units, target, start, stop - start, tile, strip, list[warp], cursor, sum);
        result.put(sum, units, target, tile, strip, start == begin, stop == end);
    }
}

// Sums of all slots, in their order. Blocks: (plane of the result, ADDED pixels of it).
constexpr int ADDED = 4 * THREADS;

template <class In, class Out>
__device__ __forceinline__ void add_slots(const Result<In, Out>& result, const ACC* __restrict__ sums, const Units& units,
                                          int slots, INDEX items, Tile tile) {
    const int target = blockIdx.x % units.targets;
    tile.image = blockIdx.x / units.targets;
    const INDEX own = result.first(units, target, tile);
    const ACC begin = result.start(target);
    for (int k = 0; k < ADDED; k += THREADS) {
        const INDEX pixel = static_cast<INDEX>(blockIdx.y) * ADDED + k + threadIdx.x;
        if (pixel >= tile.plane()) break;
        double sum = 0;
        for (int slot = 0; slot < slots; ++slot) sum += sums[slot * items + own + pixel];
        const ACC value = static_cast<ACC>(begin + sum);
        if (value - value == 0)
            write(result.values + own + pixel, value);
        else
            result.define(units, target, pixel / tile.width, pixel % tile.width, tile);
    }
}

// Blocks on a processor at a time, as in displaced.py: sums take registers, and sources shared memory.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
#define BLOCKS (sizeof(T) == 8 || sizeof(INDEX) == 8 ? 2 : LINE ? 4 : 3)
#else
#define BLOCKS 2
#endif

extern "C" __global__ void __launch_bounds__(256, BLOCKS) displaced_forward(
    const ACC* __restrict__ image, const T* __restrict__ weight, const T* __restrict__ displacement,
    const T* __restrict__ bias, T* __restrict__ y, ACC* __restrict__ sums, INDEX items, int chunk,
    int part, int targets, int sources, int per_pair, int height, int width) {
    displace(Result<ACC, T>{image, bias, y, sums, items},
             {weight, displacement, targets, sources, per_pair, false}, chunk, part, Tile(height, width));
}

extern "C" __global__ void __launch_bounds__(256, 2) displaced_add_forward(
    const ACC* __restrict__ image, const T* __restrict__ weight, const T* __restrict__ displacement,
    const T* __restrict__ bias, T* __restrict__ y, const ACC* __restrict__ sums, INDEX items, int slots,
    int targets, int sources, int per_pair, int height, int width) {
    add_slots(Result<ACC, T>{image, bias, y, nullptr, 0}, sums,
              {weight, displacement, targets, sources, per_pair, false}, slots, items, Tile(height, width));
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS) displaced_grad_blurred(
    const T* __restrict__ image, const T* __restrict__ weight, const T* __restrict__ displacement,
    ACC* __restrict__ gradient, ACC* __restrict__ sums, INDEX items, int chunk,
    int part, int targets, int sources, int per_pair, int height, int width) {
    displace(Result<T, ACC>{image, nullptr, gradient, sums, items},
             {weight, displacement, targets, sources, per_pair, true}, chunk, part, Tile(height, width));
}

extern "C" __global__ void __launch_bounds__(256, 2) displaced_add_grad_blurred(
    const T* __restrict__ image, const T* __restrict__ weight, const T* __restrict__ displacement,
    ACC* __restrict__ gradient, const ACC* __restrict__ sums, INDEX items, int slots,
    int targets, int sources, int per_pair, int height, int width) {
    add_slots(Result<T, ACC>{image, nullptr, gradient, nullptr, 0}, sums,
              {weight, displacement, targets, sources, per_pair, true}, slots, items, Tile(height, width));
}

#include "displaced_gradients.cuh"

#define CORRELATE_BLOCKS (sizeof(T) == 8 ? 1 : 2)
// Four sums per unit; see correlate. Blocks: (slot, WARPS outputs, `chunk` inputs); a slot has every slots-th tile.
extern "C" __global__ void __launch_bounds__(256, CORRELATE_BLOCKS) displaced_correlate(
    const T* __restrict__ grad_output, const ACC* __restrict__ image, const T* __restrict__ displacement,
    double* __restrict__ partial, INDEX tiles, int chunk, int outputs, int inputs, int per_pair, int height, int width) {
    correlate(grad_output, image, {nullptr, displacement, outputs, inputs, per_pair, false}, partial, tiles, chunk,
              Tile(height, width));
}

// `kind`: 0, the gradients of the interpolated read; where the image was a derivative itself, its value at the unit
// times the weight, 1: as that of the displacement along y, 2: along x. Null pointers are not written.
extern "C" __global__ void __launch_bounds__(256) displaced_grad_units(
    const double* __restrict__ partial, const T* __restrict__ grad_output, const ACC* __restrict__ image,
    const T* __restrict__ weight, const T* __restrict__ displacement, T* __restrict__ grad_weight,
    T* __restrict__ grad_displacement, INDEX units, int slots, int kind, int batch, int outputs, int inputs,
    int per_pair, int height, int width) {
    const Units all = {weight, displacement, outputs, inputs, per_pair, false};
    unit_gradients(partial, {grad_output, image, all, batch, Tile(height, width)}, grad_weight, grad_displacement, units,
                   slots, kind);
}

// partial[block] = sum of a * (b + c) over the block's share. An infinite a times b and c apart could be NaN.
extern "C" __global__ void __launch_bounds__(256) displaced_products(
    const ACC* __restrict__ a, const ACC* __restrict__ b, const ACC* __restrict__ c, double* __restrict__ partial,
    INDEX items) {
    double sum = 0;
    for (INDEX i = thread_index(); i < items; i += static_cast<INDEX>(gridDim.x) * THREADS)
        sum += static_cast<double>(a[i]) * (static_cast<double>(b[i]) + c[i]);
    sum = block_total(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// total[0] = sum of partial. One block.
extern "C" __global__ void __launch_bounds__(256) displaced_total(
    const double* __restrict__ partial, T* __restrict__ total, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
    sum = block_total(sum);
    if (threadIdx.x == 0) store(total, static_cast<ACC>(sum));
}

// A block adds up one output channel.
extern "C" __global__ void __launch_bounds__(256) displaced_grad_bias(
    const T* __restrict__ grad_output, T* __restrict__ grad_bias, INDEX batch, INDEX plane) {
    double sum = 0;
    for (INDEX n = 0; n < batch; ++n)
        for (INDEX p = threadIdx.x; p < plane; p += THREADS) sum += load(grad_output + (n * gridDim.x + blockIdx.x) * plane + p);
    sum = block_total(sum);
    if (threadIdx.x == 0) store(grad_bias + blockIdx.x, static_cast<ACC>(sum));
}
