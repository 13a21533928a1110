// displaced: units that read a blurred image at learned, fractional displacements. Forward and its gradients.
//
//   x (N,C,H,W)  weight (O,C,G)  displacement (O,C,G,2)  y (N,O,H,W);  xb = x blurred, zero outside the image
//   y[n,o,p] = bias[o] + sum over c and g of weight[o,c,g] * bilinear(xb[n,c], p + displacement[o,c,g])
//
// Order of the kernels. displaced_taps makes the taps of the blur from sigma; displaced_blur_* blur one axis at a
// time; displaced_prepare splits displacements into whole pixels and four corner weights, each times the unit's weight;
// displaced_reach finds how far units lead. displaced_forward then makes y. Backward, displaced_grad_blurred is the
// same sum with channels exchanged and displacements turned round, and its result is blurred; displaced_correlate makes
// four sums per unit, one a corner, from which displaced_grad_units makes the gradients of weight and displacement.
//
// How work is laid out. A block of four warps has one tile of TILE_ROWS x TILE_COLUMNS pixels; its lanes are 8 across
// and 4 down, each with a patch of PATCH x PATCH pixels. Source channels are staged in shared memory with an apron as
// wide as the largest displacement of the call, which the device reads: a host that knew it would have had to wait.
// The wider the apron, the fewer channels are staged between two barriers. Units that lead beyond the widest apron
// read global memory; a warp has one unit at a time, so that no branch splits it.
// Four neighbouring pixels of a row, interpolated, need five, and the lower row of one output is the upper of the next:
// 25 loads serve 16 pixels, 64 multiply-adds. Columns are stored in four interleaved parts (0,4,8,.. 1,5,9,..), so
// that the 8 lanes of a row read consecutive words wherever a unit leads, and a pitch of 2 or 6 modulo 8 words puts the
// four rows of lanes into different banks. A warp reads 1.6 words from shared memory per pixel and unit and does 4
// multiply-adds: at 32 words and 128 multiply-adds a cycle and SM, shared memory is the bound, at 1.6 times the time of
// the arithmetic. OUTPUTS outputs of a warp share one staging of the sources.
//
// No kernel uses atomics: equal inputs, equal bits. Long sums end in double, in fixed order.
//
// Constants from the Python side:  OUTPUTS  output channels of a warp
#ifndef OUTPUTS
#define OUTPUTS 2
#endif
#include "common.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int PATCH = 4, LANES_ACROSS = 8, LANES_DOWN = 4;
constexpr int TILE_COLUMNS = LANES_ACROSS * PATCH, TILE_ROWS = LANES_DOWN * PATCH;
constexpr int CORNERS = 4;

// The weights of the four pixels of a unit: upper left, upper right, lower left, lower right. Of a unit that is not
// finite: its weight, or NaN, twice, and the fractions of its displacement. Such a weight times what two pixels are
// weighted with could be NaN where the weight times their sum is infinite.
struct __align__(16) Corners {
    ACC value[CORNERS];
    __device__ __forceinline__ bool finite() const { return value[0] - value[0] == 0; }
};

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
extern "C" __global__ void __launch_bounds__(128) displaced_taps(ACC* __restrict__ taps, double sigma, int radius) {
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

// Correlation along one axis: neighbours lie `step` apart in memory and a line has `extent` pixels.
template <class In, class Out>
__device__ __forceinline__ void blur_line(const In* __restrict__ image, const ACC* __restrict__ taps,
                                          Out* __restrict__ result, INDEX items, int step, int extent, int radius) {
    const INDEX i = thread_index();
    if (i >= items) return;
    const int place = i / step % extent;
    ACC sum = 0;
    for (int j = min(radius, max(place, extent - 1 - place)); j > 0; --j) {  // the large terms last: less is rounded off
        if (place >= j) sum += taps[radius - j] * read(image + i - static_cast<INDEX>(j) * step);
        if (place + j < extent) sum += taps[radius + j] * read(image + i + static_cast<INDEX>(j) * step);
    }
    write(result + i, sum + taps[radius] * read(image + i));
}

extern "C" __global__ void __launch_bounds__(128) displaced_blur_first(
    const T* __restrict__ image, const ACC* __restrict__ taps, ACC* __restrict__ result, INDEX items, int step,
    int extent, int radius) {
    blur_line(image, taps, result, items, step, extent, radius);
}

extern "C" __global__ void __launch_bounds__(128) displaced_blur_second(
    const ACC* __restrict__ image, const ACC* __restrict__ taps, ACC* __restrict__ result, INDEX items, int step,
    int extent, int radius) {
    blur_line(image, taps, result, items, step, extent, radius);
}

extern "C" __global__ void __launch_bounds__(128) displaced_blur_last(
    const ACC* __restrict__ image, const ACC* __restrict__ taps, T* __restrict__ result, INDEX items, int step,
    int extent, int radius) {
    blur_line(image, taps, result, items, step, extent, radius);
}

// ---- the units -----------------------------------------------------------------------------------------------------

struct Place {
    int y, x;    // whole pixels
    ACC ly, lx;  // and the rest: both NaN where a displacement is
};

// Whole pixels and the rest of one displacement. What lies so far that nothing is read moves to the nearest such place.
__device__ __forceinline__ int split(ACC move, int size, ACC& rest) {
    if (move > size + 1) move = size + 1;
    if (move < -size - 1) move = -size - 1;
    const ACC whole = floor(move);
    rest = move - whole;
    return static_cast<int>(whole);
}

__device__ __forceinline__ Place place_unit(ACC y, ACC x, int height, int width) {
    Place place = {0, 0, y + x, y + x};
    if (y == y && x == x) {
        place.y = split(y, height, place.ly);
        place.x = split(x, width, place.lx);
    }
    return place;
}

// place (targets, sources, G, 2) and corner (targets, sources, G, 4). Targets are the outputs, or, `transposed`, the
// inputs, and then the displacements are the opposite ones.
extern "C" __global__ void __launch_bounds__(128) displaced_prepare(
    const T* __restrict__ weight, const T* __restrict__ displacement, int* __restrict__ place,
    ACC* __restrict__ corner, INDEX units, int outputs, int inputs, int per_pair, int height, int width,
    int transposed) {
    const INDEX unit = thread_index();
    if (unit >= units) return;
    INDEX flat = unit;
    const INDEX g = take(flat, per_pair);
    const INDEX source = take(flat, transposed ? outputs : inputs);
    const INDEX from = (transposed ? source * inputs + flat : flat * inputs + source) * per_pair + g;
    const ACC w = load(weight + from), sign = transposed ? ACC(-1) : ACC(1);
    const ACC y = load_coordinate(displacement + 2 * from), x = load_coordinate(displacement + 2 * from + 1);
    const Place own = place_unit(sign * y, sign * x, height, width);
    place[2 * unit] = own.y;
    place[2 * unit + 1] = own.x;
    const ACC odd = w + own.ly, hy = 1 - own.ly, hx = 1 - own.lx;
    const bool finite = odd - odd == 0;
    corner[4 * unit] = finite ? w * hy * hx : odd;
    corner[4 * unit + 1] = finite ? w * hy * own.lx : odd;
    corner[4 * unit + 2] = finite ? w * own.ly * hx : own.ly;
    corner[4 * unit + 3] = finite ? w * own.ly * own.lx : own.lx;
}

// reach[0] = the largest displacement that does not exceed `most`. One block.
extern "C" __global__ void __launch_bounds__(128) displaced_reach(
    const int* __restrict__ place, int* __restrict__ reach, INDEX units, int most) {
    __shared__ int part[THREADS];
    int largest = 0;
    for (INDEX unit = threadIdx.x; unit < units; unit += THREADS) {
        const int y = place[2 * unit], x = place[2 * unit + 1];
        const int far = max(max(y, -y), max(x, -x));
        if (far <= most) largest = max(largest, far);
    }
    part[threadIdx.x] = largest;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) part[threadIdx.x] = max(part[threadIdx.x], part[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) reach[0] = part[0];
}

// ---- tiles in shared memory ----------------------------------------------------------------------------------------

struct Geometry {
    int sources, per_pair, height, width;
    int row, column;  // of the tile
    int reach, rows, columns, part, pitch;

    // displaced.py computes the same size, to know how wide an apron may be.
    __device__ __forceinline__ void apron(int wide) {
        reach = wide;
        rows = TILE_ROWS + 2 * reach + 1;
        columns = TILE_COLUMNS + 2 * reach + 1;
        part = (columns + PATCH - 1) / PATCH;
        pitch = PATCH * part + (10 - PATCH * part % 8) % 8;
    }
    __device__ __forceinline__ int area() const { return rows * pitch; }
    __device__ __forceinline__ int column_at(int index) const { return index % PATCH * part + index / PATCH; }
    __device__ __forceinline__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
    __device__ __forceinline__ bool near(int y, int x) const {
        return y >= -reach && y <= reach && x >= -reach && x <= reach;
    }
};

// Copy `count` channels of an image, from `channel` on, with apron.
template <class In>
__device__ __forceinline__ void stage(const In* __restrict__ image, INDEX channel, int count, const Geometry& geo,
                                      ACC* tile) {
    const INDEX plane = static_cast<INDEX>(geo.height) * geo.width;
    __syncthreads();
    for (int i = threadIdx.x; i < count * geo.rows * geo.columns; i += THREADS) {
        const int line = i / geo.columns, column = i % geo.columns, c = line / geo.rows, row = line % geo.rows;
        const int y = geo.row - geo.reach + row, x = geo.column - geo.reach + column;
        const In* source = image + (channel + c) * plane + static_cast<INDEX>(y) * geo.width + x;
        tile[c * geo.area() + row * geo.pitch + geo.column_at(column)] = geo.inside(y, x) ? read(source) : ACC(0);
    }
    __syncthreads();
}

// The five pixels of a row that a patch needs, and the way to the next row: from shared memory or, for units that lead
// beyond the apron, from the image.
template <class In>
struct NearRows {
    const ACC* line;
    int pitch, at[PATCH + 1];
    __device__ __forceinline__ NearRows(const ACC* tile, const In*, const Geometry& geo, int down, int across, int y,
                                        int x) {
        line = tile + (down + geo.reach + y) * geo.pitch + across / PATCH;
        pitch = geo.pitch;
#pragma unroll
        for (int j = 0; j <= PATCH; ++j) at[j] = geo.column_at(geo.reach + x + j);
    }
    __device__ __forceinline__ void next(ACC (&row)[PATCH + 1]) {
#pragma unroll
        for (int j = 0; j <= PATCH; ++j) row[j] = line[at[j]];
        line += pitch;
    }
};

template <class In>
struct FarRows {
    const In* image;
    int y, x, height, width;
    __device__ __forceinline__ FarRows(const ACC*, const In* plane, const Geometry& geo, int down, int across, int move_y,
                                       int move_x)
        : image(plane), y(geo.row + down + move_y), x(geo.column + across + move_x), height(geo.height),
          width(geo.width) {}
    __device__ __forceinline__ void next(ACC (&row)[PATCH + 1]) {
#pragma unroll
        for (int j = 0; j <= PATCH; ++j) {
            const bool inside = y >= 0 && y < height && x + j >= 0 && x + j < width;
            row[j] = inside ? read(image + static_cast<INDEX>(y) * width + x + j) : ACC(0);
        }
        ++y;
    }
};

// ---- the sum over units --------------------------------------------------------------------------------------------

template <class Rows>
__device__ __forceinline__ void add_unit(Rows rows, const Corners& corner, ACC (&sum)[PATCH * PATCH]) {
    ACC upper[PATCH + 1], lower[PATCH + 1];
    rows.next(upper);
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
        rows.next(lower);
#pragma unroll
        for (int j = 0; j < PATCH; ++j)
            sum[i * PATCH + j] += corner.value[0] * upper[j] + corner.value[1] * upper[j + 1] +
                                  corner.value[2] * lower[j] + corner.value[3] * lower[j + 1];
#pragma unroll
        for (int j = 0; j <= PATCH; ++j) upper[j] = lower[j];
    }
}

// The sum for one pixel as the definition says: `image` are the sources, `unit` is the first of the target channel. NaN
// stays NaN whatever is added.
template <class In>
__device__ __forceinline__ ACC defined_sum(const In* __restrict__ image, const ACC* __restrict__ corner,
                                           const int* __restrict__ place, INDEX unit, int row, int column,
                                           const Geometry& geo) {
    ACC sum = 0;
    for (int k = 0; k < geo.sources * geo.per_pair && sum == sum; ++k, ++unit) {
        const Corners own = *reinterpret_cast<const Corners*>(corner + CORNERS * unit);
        const In* plane = image + static_cast<INDEX>(k / geo.per_pair) * geo.height * geo.width;
        ACC pixel[CORNERS];
#pragma unroll
        for (int i = 0; i < CORNERS; ++i) {
            const int y = row + place[2 * unit] + i / 2, x = column + place[2 * unit + 1] + i % 2;
            pixel[i] = geo.inside(y, x) ? read(plane + static_cast<INDEX>(y) * geo.width + x) : ACC(0);
        }
        if (own.finite()) {
            sum += own.value[0] * pixel[0] + own.value[1] * pixel[1] + own.value[2] * pixel[2] + own.value[3] * pixel[3];
        } else {
            const ACC y = own.value[2], x = own.value[3];
            sum += own.value[0] * ((1 - y) * ((1 - x) * pixel[0] + x * pixel[1]) +
                                   y * ((1 - x) * pixel[2] + x * pixel[3]));
        }
    }
    return sum;
}

// Blocks: (image, row of tiles, column of tiles, WARPS*OUTPUTS target channels). capacity: elements of shared memory.
// Where a unit is not finite, no sum is; sums that are not finite are made again.
template <class In, class Out>
__device__ __forceinline__ void displace(const In* __restrict__ image, const ACC* __restrict__ corner,
                                         const int* __restrict__ place, const int* __restrict__ reach,
                                         const T* __restrict__ base, Out* __restrict__ result, int capacity, int targets,
                                         Geometry& geo) {
    extern __shared__ ACC tile[];
    INDEX flat = blockIdx.x;
    const int chunks = (targets + WARPS * OUTPUTS - 1) / (WARPS * OUTPUTS);
    const int target = take(flat, chunks) * WARPS * OUTPUTS + threadIdx.x / WARP * OUTPUTS;
    geo.column = TILE_COLUMNS * take(flat, (geo.width + TILE_COLUMNS - 1) / TILE_COLUMNS);
    geo.row = TILE_ROWS * take(flat, (geo.height + TILE_ROWS - 1) / TILE_ROWS);
    geo.apron(reach[0]);
    const INDEX n = flat, plane = static_cast<INDEX>(geo.height) * geo.width;
    const int lane = threadIdx.x % WARP, across = PATCH * (lane % LANES_ACROSS), down = PATCH * (lane / LANES_ACROSS);
    const int together = max(1, capacity / geo.area());
    ACC sum[OUTPUTS][PATCH * PATCH] = {};
    for (int first = 0; first < geo.sources; first += together) {
        const int count = min(together, geo.sources - first);
        stage(image, n * geo.sources + first, count, geo, tile);
#pragma unroll
        for (int s = 0; s < OUTPUTS; ++s) {
            if (target + s >= targets) break;
            const INDEX units = (static_cast<INDEX>(target + s) * geo.sources + first) * geo.per_pair;
            for (int k = 0; k < count * geo.per_pair; ++k) {
                const int c = k / geo.per_pair, y = place[2 * (units + k)], x = place[2 * (units + k) + 1];
                const Corners own = *reinterpret_cast<const Corners*>(corner + CORNERS * (units + k));
                const ACC* near = tile + c * geo.area();
                const In* far = image + (n * geo.sources + first + c) * plane;
                if (geo.near(y, x))
                    add_unit(NearRows<In>(near, far, geo, down, across, y, x), own, sum[s]);
                else
                    add_unit(FarRows<In>(near, far, geo, down, across, y, x), own, sum[s]);
            }
        }
    }
#pragma unroll
    for (int s = 0; s < OUTPUTS; ++s) {
        if (target + s >= targets) break;
        const ACC start = base ? load(base + target + s) : ACC(0);
        Out* out = result + (n * targets + target + s) * plane;
        bool finite = true;
#pragma unroll
        for (int i = 0; i < PATCH * PATCH; ++i) {
            const int y = geo.row + down + i / PATCH, x = geo.column + across + i % PATCH;
            const ACC value = start + sum[s][i];
            if (!geo.inside(y, x)) continue;
            write(out + static_cast<INDEX>(y) * geo.width + x, value);
            finite = finite && value - value == 0;
        }
        if (finite) continue;
#pragma unroll 1
        for (int i = 0; i < PATCH * PATCH; ++i) {
            const int y = geo.row + down + i / PATCH, x = geo.column + across + i % PATCH;
            if (!geo.inside(y, x)) continue;
            Out* pixel = out + static_cast<INDEX>(y) * geo.width + x;
            const INDEX unit = static_cast<INDEX>(target + s) * geo.sources * geo.per_pair;
            const ACC value = read(pixel);
            if (value - value == 0) continue;
            write(pixel, start + defined_sum(image + n * geo.sources * plane, corner, place, unit, y, x, geo));
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 3) displaced_forward(
    const ACC* __restrict__ image, const ACC* __restrict__ corner, const int* __restrict__ place,
    const int* __restrict__ reach, const T* __restrict__ bias, T* __restrict__ y, int capacity, int targets,
    int sources, int per_pair, int height, int width) {
    Geometry geo = {sources, per_pair, height, width};
    displace(image, corner, place, reach, bias, y, capacity, targets, geo);
}

extern "C" __global__ void __launch_bounds__(128, 3) displaced_grad_blurred(
    const T* __restrict__ image, const ACC* __restrict__ corner, const int* __restrict__ place,
    const int* __restrict__ reach, const T* __restrict__ base, ACC* __restrict__ gradient, int capacity, int targets,
    int sources, int per_pair, int height, int width) {
    Geometry geo = {sources, per_pair, height, width};
    displace(image, corner, place, reach, base, gradient, capacity, targets, geo);
}

#include "displaced_gradients.cuh"

// The gradients of weight and displacement need, per unit and corner, the sum of grad_output times the pixels that the
// unit reads there. Blocks: (slot, chunk of source channels, chunk of outputs); a slot has every slots-th tile.
#define CORRELATE_BLOCKS (sizeof(T) == 8 ? 2 : 3)  // in double, sums take twice the registers
extern "C" __global__ void __launch_bounds__(128, CORRELATE_BLOCKS) displaced_correlate(
    const T* __restrict__ grad_output, const ACC* __restrict__ image, const int* __restrict__ place,
    const int* __restrict__ reach, double* __restrict__ partial, INDEX tiles, int slots, int chunk, int capacity,
    int targets, int sources, int per_pair, int height, int width) {
    Geometry geo = {sources, per_pair, height, width};
    correlate(grad_output, image, place, reach, partial, tiles, slots, chunk, capacity, targets, geo);
}

// `kind`: 0, the gradients of the interpolated read; where the image was a derivative itself, its value at the unit
// times the weight, 1: as that of the displacement along y, 2: along x. Null pointers are not written.
extern "C" __global__ void __launch_bounds__(128) displaced_grad_units(
    const double* __restrict__ partial, const T* __restrict__ grad_output, const ACC* __restrict__ image,
    const T* __restrict__ weight, const T* __restrict__ displacement, T* __restrict__ grad_weight,
    T* __restrict__ grad_displacement, INDEX units, int slots, int kind, int batch, int outputs, int inputs,
    int per_pair, int height, int width) {
    const Correlation of = {grad_output, image, batch, outputs, inputs, per_pair, height, width};
    unit_gradients(partial, of, weight, displacement, grad_weight, grad_displacement, units, slots, kind);
}

// partial[block] = sum of a * (b + c) over the block's share. An infinite a times b and c apart could be NaN.
extern "C" __global__ void __launch_bounds__(128) displaced_products(
    const ACC* __restrict__ a, const ACC* __restrict__ b, const ACC* __restrict__ c, double* __restrict__ partial,
    INDEX items) {
    double sum = 0;
    for (INDEX i = thread_index(); i < items; i += static_cast<INDEX>(gridDim.x) * THREADS)
        sum += static_cast<double>(a[i]) * (static_cast<double>(b[i]) + c[i]);
    sum = block_total(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// total[0] = sum of partial. One block.
extern "C" __global__ void __launch_bounds__(128) displaced_total(
    const double* __restrict__ partial, T* __restrict__ total, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += partial[i];
    sum = block_total(sum);
    if (threadIdx.x == 0) store(total, static_cast<ACC>(sum));
}

// A block adds up one output channel.
extern "C" __global__ void __launch_bounds__(128) displaced_grad_bias(
    const T* __restrict__ grad_output, T* __restrict__ grad_bias, INDEX batch, INDEX plane) {
    double sum = 0;
    for (INDEX n = 0; n < batch; ++n)
        for (INDEX p = threadIdx.x; p < plane; p += THREADS) sum += load(grad_output + (n * gridDim.x + blockIdx.x) * plane + p);
    sum = block_total(sum);
    if (threadIdx.x == 0) store(grad_bias + blockIdx.x, static_cast<ACC>(sum));
}
