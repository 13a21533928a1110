#pragma once
// The gradients of the units of displaced.cu.

// Leaves in lanes with lane % 4 = k the sum of value[k] over the warp: 6 shuffles, where four sums apart take 20. The
// last three, of the longer sums, in double.
__device__ __forceinline__ double warp_totals(const ACC (&value)[CORNERS]) {
    const bool odd = threadIdx.x & 1, second = threadIdx.x & 2;
    ACC pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const ACC sent = odd ? value[2 * i] : value[2 * i + 1], kept = odd ? value[2 * i + 1] : value[2 * i];
        pair[i] = kept + __shfl_xor_sync(ALL_LANES, sent, 1);
    }
    const ACC sent = second ? pair[0] : pair[1], kept = second ? pair[1] : pair[0];
    double total = kept + __shfl_xor_sync(ALL_LANES, sent, 2);
#pragma unroll
    for (int distance = 4; distance < WARP; distance *= 2) total += __shfl_xor_sync(ALL_LANES, total, distance);
    return total;
}

// Sums of gradient times pixel over a patch and then the warp, for the four corners, pairwise, so that little is lost to
// rounding. Pixels that belong to no output have gradient 0.
template <class Rows>
__device__ __forceinline__ double unit_totals(Rows rows, const ACC (&gradient)[PATCH * PATCH]) {
    ACC upper[PATCH + 1], lower[PATCH + 1], even[CORNERS], sum[CORNERS] = {};
    rows.next(upper);
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
        rows.next(lower);
        auto product = [&](const ACC* pixel, int j) { return gradient[i * PATCH + j] * pixel[j]; };
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) {
            const ACC* pixel = (k < 2 ? upper : lower) + k % 2;
            const ACC part = (product(pixel, 0) + product(pixel, 1)) + (product(pixel, 2) + product(pixel, 3));
            if (i % 2 == 0)
                even[k] = part;
            else
                sum[k] += even[k] + part;
        }
#pragma unroll
        for (int j = 0; j <= PATCH; ++j) upper[j] = lower[j];
    }
    return warp_totals(sum);
}

__device__ __forceinline__ void correlate(const T* __restrict__ grad_output, const ACC* __restrict__ image,
                                          const int* __restrict__ place, const int* __restrict__ reach,
                                          double* __restrict__ partial, INDEX tiles, int slots, int chunk, int capacity,
                                          int targets, Geometry& geo) {
    extern __shared__ ACC tile[];
    INDEX flat = blockIdx.x;
    const int target = take(flat, (targets + WARPS * OUTPUTS - 1) / (WARPS * OUTPUTS)) * WARPS * OUTPUTS +
                       threadIdx.x / WARP * OUTPUTS;
    const int begin = take(flat, (geo.sources + chunk - 1) / chunk) * chunk;
    const int slot = flat, end = min(begin + chunk, geo.sources);
    const INDEX plane = static_cast<INDEX>(geo.height) * geo.width;
    const int lane = threadIdx.x % WARP, across = PATCH * (lane % LANES_ACROSS), down = PATCH * (lane / LANES_ACROSS);
    geo.apron(reach[0]);
    const int together = max(1, capacity / geo.area());
    partial += slot * (static_cast<INDEX>(targets) * geo.sources * geo.per_pair * CORNERS);
    for (INDEX which = slot; which < tiles; which += slots) {
        flat = which;
        geo.column = TILE_COLUMNS * take(flat, (geo.width + TILE_COLUMNS - 1) / TILE_COLUMNS);
        geo.row = TILE_ROWS * take(flat, (geo.height + TILE_ROWS - 1) / TILE_ROWS);
        const INDEX n = flat;
        const int high = geo.height - geo.row - down, wide = geo.width - geo.column - across;
        for (int first = begin; first < end; first += together) {
            const int count = min(together, end - first);
            stage(image, n * geo.sources + first, count, geo, tile);
            for (int o = target; o < min(target + OUTPUTS, targets); ++o) {
                const T* source = grad_output + (n * targets + o) * plane +
                                  static_cast<INDEX>(geo.row + down) * geo.width + geo.column + across;
                ACC gradient[PATCH * PATCH];
#pragma unroll
                for (int i = 0; i < PATCH * PATCH; ++i) {
                    const int y = i / PATCH, x = i % PATCH;
                    gradient[i] = y < high && x < wide ? load(source + static_cast<INDEX>(y) * geo.width + x) : ACC(0);
                }
                const INDEX units = (static_cast<INDEX>(o) * geo.sources + first) * geo.per_pair;
                for (int k = 0; k < count * geo.per_pair; ++k) {
                    const int c = k / geo.per_pair, y = place[2 * (units + k)], x = place[2 * (units + k) + 1];
                    const ACC* near = tile + c * geo.area();
                    const ACC* far = image + (n * geo.sources + first + c) * plane;
                    const double total = geo.near(y, x)
                        ? unit_totals(NearRows<ACC>(near, far, geo, down, across, y, x), gradient)
                        : unit_totals(FarRows<ACC>(near, far, geo, down, across, y, x), gradient);
                    if (lane < CORNERS) {
                        double* sum = partial + CORNERS * (units + k) + lane;
                        *sum = which == slot ? total : *sum + total;
                    }
                }
            }
        }
    }
}

// What the sums of a unit are made of.
struct Correlation {
    const T* grad_output;
    const ACC* image;
    int batch, outputs, inputs, per_pair, height, width;
};

// The sum of gradient times what a unit reads, or (kinds 1 and 2) times its derivative by y or x, as the definition says,
// for a whole block: an infinite gradient, or one of 0 in the place of none, can make NaN of the sums of corners, but
// a number or an infinity of this.
__device__ __forceinline__ double defined_total(const Correlation& of, INDEX unit, const Place& place, int kind) {
    INDEX flat = unit / of.per_pair;
    const INDEX source = take(flat, of.inputs), plane = static_cast<INDEX>(of.height) * of.width;
    const double y[2] = {kind == 1 ? -1.0 : 1.0 - place.ly, kind == 1 ? 1.0 : place.ly};
    const double x[2] = {kind == 2 ? -1.0 : 1.0 - place.lx, kind == 2 ? 1.0 : place.lx};
    double sum = 0;
    for (int n = 0; n < of.batch; ++n) {
        const T* gradient = of.grad_output + (static_cast<INDEX>(n) * of.outputs + flat) * plane;
        const ACC* image = of.image + (static_cast<INDEX>(n) * of.inputs + source) * plane;
        for (INDEX p = threadIdx.x; p < plane; p += THREADS) {
            const int row = static_cast<int>(p / of.width) + place.y, column = static_cast<int>(p % of.width) + place.x;
            double read = 0;
            for (int k = 0; k < CORNERS; ++k) {
                const int i = row + k / 2, j = column + k % 2;
                const bool inside = i >= 0 && i < of.height && j >= 0 && j < of.width;
                const double pixel = inside ? image[static_cast<INDEX>(i) * of.width + j] : ACC(0);
                read += y[k / 2] * x[k % 2] * pixel;
            }
            sum += load(gradient + p) * read;
        }
    }
    return block_total(sum);
}

// `kind` as that of displaced_grad_units.
__device__ __forceinline__ void unit_gradients(const double* __restrict__ partial, const Correlation& of,
                                               const T* __restrict__ weight, const T* __restrict__ displacement,
                                               T* __restrict__ grad_weight, T* __restrict__ grad_displacement,
                                               INDEX units, int slots, int kind) {
    __shared__ bool odd[THREADS];
    const INDEX unit = thread_index(), first = unit - threadIdx.x;
    auto write = [&](INDEX unit, double value, double slope_y, double slope_x) {
        const double w = load(weight + unit);
        if (kind != 0) {
            store(grad_displacement + 2 * unit + kind - 1, static_cast<ACC>(w * value));
            return;
        }
        if (grad_weight) store(grad_weight + unit, static_cast<ACC>(value));
        if (grad_displacement) {
            store(grad_displacement + 2 * unit, static_cast<ACC>(w * slope_y));
            store(grad_displacement + 2 * unit + 1, static_cast<ACC>(w * slope_x));
        }
    };
    auto placed = [&](INDEX unit) {
        const ACC y = load_coordinate(displacement + 2 * unit), x = load_coordinate(displacement + 2 * unit + 1);
        return place_unit(y, x, of.height, of.width);
    };
    double sum[CORNERS] = {};
    if (unit < units)
        for (int slot = 0; slot < slots; ++slot)
            for (int i = 0; i < CORNERS; ++i) sum[i] += partial[(slot * units + unit) * CORNERS + i];
    const double all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    odd[threadIdx.x] = !(all - all == 0);
    if (unit < units && !odd[threadIdx.x]) {
        const Place place = placed(unit);
        const double y = place.ly, x = place.lx;
        const double upper = (1 - x) * sum[0] + x * sum[1], lower = (1 - x) * sum[2] + x * sum[3];
        const double slope_x = (1 - y) * (sum[1] - sum[0]) + y * (sum[3] - sum[2]);
        write(unit, (1 - y) * upper + y * lower, lower - upper, slope_x);
    }
    __syncthreads();
    for (int k = 0; k < THREADS; ++k) {
        if (!odd[k]) continue;
        double total[3] = {};
        const Place place = placed(first + k);
        for (int i = 0; i < (kind == 0 ? 3 : 1); ++i) total[i] = defined_total(of, first + k, place, i);
        if (threadIdx.x == 0) write(first + k, total[0], total[1], total[2]);
    }
}
