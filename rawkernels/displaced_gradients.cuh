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

// Sums of gradient times pixel over a patch, for the four corners, pairwise, so that little is lost to rounding. Pixels
// that belong to no output have gradient 0; MASKED leaves them out altogether, because what they read may be no number.
template <bool MASKED, class Rows>
__device__ __forceinline__ double patch_totals(Rows rows, const ACC (&gradient)[PATCH * PATCH], int high, int wide) {
    ACC upper[PATCH + 1], lower[PATCH + 1], even[CORNERS], sum[CORNERS] = {};
    rows.next(upper);
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
        rows.next(lower);
        auto product = [&](const ACC* pixel, int j) {
            return MASKED && (i >= high || j >= wide) ? ACC(0) : gradient[i * PATCH + j] * pixel[j];
        };
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

template <class Rows>
__device__ __forceinline__ double unit_totals(const Rows& rows, const ACC (&gradient)[PATCH * PATCH], int high,
                                              int wide) {
    const double total = patch_totals<false>(rows, gradient, high, wide);
    if (!__any_sync(ALL_LANES, !(total - total == 0))) return total;
    return patch_totals<true>(rows, gradient, high, wide);
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
                        ? unit_totals(NearRows<ACC>(near, far, geo, down, across, y, x), gradient, high, wide)
                        : unit_totals(FarRows<ACC>(near, far, geo, down, across, y, x), gradient, high, wide);
                    if (lane < CORNERS) {
                        double* sum = partial + CORNERS * (units + k) + lane;
                        *sum = which == slot ? total : *sum + total;
                    }
                }
            }
        }
    }
}

__device__ __forceinline__ void unit_gradients(const double* __restrict__ partial, const T* __restrict__ weight,
                                               const T* __restrict__ displacement, T* __restrict__ grad_weight,
                                               T* __restrict__ grad_displacement, INDEX units, int slots, int kind,
                                               int height, int width) {
    const INDEX unit = thread_index();
    if (unit >= units) return;
    double sum[CORNERS] = {};
    for (int slot = 0; slot < slots; ++slot)
        for (int i = 0; i < CORNERS; ++i) sum[i] += partial[(slot * units + unit) * CORNERS + i];
    const double w = load(weight + unit);
    ACC rest_y, rest_x;
    split(load(displacement + 2 * unit), height, rest_y);
    split(load(displacement + 2 * unit + 1), width, rest_x);
    const double y = rest_y, x = rest_x;
    const double upper = (1 - x) * sum[0] + x * sum[1], lower = (1 - x) * sum[2] + x * sum[3];
    const double value = (1 - y) * upper + y * lower;
    if (kind == 0) {
        if (grad_weight) store(grad_weight + unit, static_cast<ACC>(value));
        if (grad_displacement) {
            const double slope = (1 - y) * (sum[1] - sum[0]) + y * (sum[3] - sum[2]);
            store(grad_displacement + 2 * unit, static_cast<ACC>(w * (lower - upper)));
            store(grad_displacement + 2 * unit + 1, static_cast<ACC>(w * slope));
        }
    } else {
        store(grad_displacement + 2 * unit + kind - 1, static_cast<ACC>(w * value));
    }
}
