#pragma once
// The gradients of the units of displaced.cu.
//
// With g the gradient of the output, and of the two rows that a unit reads for a pixel t_0, t_1 the values interpolated along
// the row and d_0, d_1 the differences of neighbours, four sums over the pixels are all it takes:
//   value[0] = sum g (t_0 + ly (t_1 - t_0)),  value[1] = sum g (t_1 - t_0),  value[2] = sum g d_0,  value[3] = sum g d_1
// Slopes are sums of small differences, and not differences of large sums. On a line there is one row: value[0] = sum g t_0
// and value[2].
struct Fractions {
    ACC ly, lx;
};
struct UnitList {
    Lead lead[WARP];
    Fractions fractions[WARP];
};

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

// The four sums over a patch and then the warp, as a tree, so that little is lost to rounding: two rows, four, eight, two
// lanes and so on. Pixels that belong to no output have gradient 0.
template <class Rows>
__device__ __forceinline__ double unit_totals(Rows rows, const Fractions& unit, const ACC (&gradient)[PATCH]) {
    constexpr int LEVELS = 4;
    static_assert(UNIT_ROWS < 1 << LEVELS, "a tree of all rows");
    ACC above[PATCH_COLUMNS], level[LEVELS][CORNERS], sum[CORNERS] = {};
#pragma unroll
    for (int i = 0; i < UNIT_ROWS; ++i) {
        ACC pixel[PATCH_COLUMNS + 1], part[CORNERS] = {};
        rows.next(pixel);
#pragma unroll
        for (int j = 0; j < PATCH_COLUMNS; ++j) {
            const ACC slope = pixel[j + 1] - pixel[j], between = pixel[j] + unit.lx * slope;
            if (LINE) part[0] += gradient[j] * between;
            if (i < PATCH_ROWS) part[2] += gradient[i * PATCH_COLUMNS + j] * slope;
            if (i > 0) {
                const ACC own = gradient[(i - 1) * PATCH_COLUMNS + j], down = between - above[j];
                part[0] += own * (above[j] + unit.ly * down);
                part[1] += own * down;
                part[3] += own * slope;
            }
            above[j] = between;
        }
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) {
#pragma unroll
            for (int l = 0; l < LEVELS && (i >> l & 1); ++l) part[k] += level[l][k];
#pragma unroll
            for (int l = 0; l < LEVELS; ++l)
                if ((i + 1) % (1 << l) == 0 && (i + 1) >> l & 1) level[l][k] = part[k];
        }
    }
#pragma unroll
    for (int l = 0; l < LEVELS; ++l)
#pragma unroll
        for (int k = 0; k < CORNERS; ++k)
            if (UNIT_ROWS >> l & 1) sum[k] += level[l][k];
    return warp_totals(sum);
}

// The patch of each lane, of one plane; see StripPixel.
__device__ __forceinline__ void get_patch(const T* __restrict__ plane, const Tile& tile, ACC* strip, ACC (&patch)[PATCH]) {
#pragma unroll
    for (int k = 0; k < PATCH; ++k) {
        const StripPixel pixel(k % PATCH_COLUMNS, k / PATCH_COLUMNS, tile);
        const bool inside = tile.inside(pixel.y, pixel.x);
        patch[k] = inside ? load(plane + static_cast<INDEX>(pixel.y) * tile.width + pixel.x) : ACC(0);
    }
#pragma unroll
    for (int i = 0; i < PATCH_ROWS; ++i) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PATCH_COLUMNS; ++j) strip[StripPixel(j, i, tile).at] = patch[i * PATCH_COLUMNS + j];
        __syncwarp();
#pragma unroll
        for (int j = 0; j < PATCH_COLUMNS; ++j) patch[i * PATCH_COLUMNS + j] = strip[strip_start() + j];
    }
}

// Sums of the units between a target and `count` sources, of which `image` is the first and `held` what is staged; set
// in `partial`, or `add`ed to what is there.
__device__ __forceinline__ void correlate_units(const ACC (&gradient)[PATCH], const ACC* __restrict__ image,
                                                const Units& units, int target, int first, int count, const Tile& tile,
                                                const ACC* held, ACC* strip, UnitList& list, Cursor cursor, double* partial,
                                                bool add) {
    const ACC* own = held + lane_row() * tile.pitch() + lane_column();
    const int lane = threadIdx.x % WARP, all = count * units.per_pair;
    const INDEX begin = units.index(target, first, 0);  // the units of one target lie in a row
    for (int start = 0; start < all; start += WARP, cursor.advance()) {
        __syncwarp();
        if (cursor.source < count) {
            const Place place = units.place(begin + start + lane, tile.height, tile.width);
            list.lead[lane] = lead_to(place, cursor.source, tile);
            list.fractions[lane] = {place.ly, place.lx};
        }
        __syncwarp();
        for (int k = 0; k < min(WARP, all - start); ++k) {
            const int at = list.lead[k].at;
            const double total = at >= 0
                ? unit_totals(NearRows{own + at, tile.pitch()}, list.fractions[k], gradient)
                : unit_totals(FarRows<ACC>{image, tile, list.lead[k], strip}, list.fractions[k], gradient);
            double* sum = partial + CORNERS * (begin + start + k) + lane;
            if (lane < CORNERS) *sum = add ? *sum + total : total;
        }
    }
}

// Blocks: (slot, WARPS targets, `chunk` sources). A slot has every slots-th tile.
__device__ __forceinline__ void correlate(const T* __restrict__ grad_output, const ACC* __restrict__ image,
                                          const Units& units, double* __restrict__ partial, INDEX tiles, int chunk,
                                          Tile tile) {
    __shared__ ACC held[SHARED];
    __shared__ UnitList list[WARPS];
    const int warp = threadIdx.x / WARP, target = blockIdx.y * WARPS + warp;
    const int begin = blockIdx.z * chunk, end = min(begin + chunk, units.sources);
    const Cursor cursor(units.per_pair);
    ACC* strip = held + CAPACITY + warp * STRIP;
    partial += blockIdx.x * (static_cast<INDEX>(units.targets) * units.sources * units.per_pair * CORNERS);
    tile.find_apron(units, target, begin, end);
    for (INDEX which = blockIdx.x; which < tiles; which += gridDim.x) {
        tile.find(which);
        ACC gradient[PATCH];
        if (target < units.targets) {
            const INDEX plane = static_cast<INDEX>(tile.image) * units.targets + target;
            get_patch(grad_output + plane * tile.plane(), tile, strip, gradient);
        }
        for (int first = begin; first < end; first += tile.together) {
            const int count = min(tile.together, end - first);
            const INDEX plane = static_cast<INDEX>(tile.image) * units.sources + first;
            stage(image, plane, count, tile, held);
            if (target < units.targets)
                correlate_units(gradient, image + plane * tile.plane(), units, target, first, count, tile, held,
                                strip, list[warp], cursor, partial, which != blockIdx.x);
        }
    }
}

// Two sums of a unit, read at once.
struct __align__(16) Pair {
    double first, second;
};

// The pixels that go into the sums of units.
struct Correlation {
    const T* grad_output;
    const ACC* image;
    Units units;
    int batch;
    Tile tile;  // only the size of an image
};

// The sum of gradient times what a unit reads, or (kinds 1 and 2) times its derivative by y or x, as the definition says,
// for a whole block: an infinite gradient, or one of 0 in the place of none, can make NaN of the sums of corners, but
// a number or an infinity of this.
__device__ __forceinline__ double defined_total(const Correlation& of, INDEX unit, const Place& place, int kind) {
    const INDEX pair = unit / of.units.per_pair, plane = of.tile.plane();
    const double y[2] = {kind == 1 ? -1.0 : 1.0 - place.ly, kind == 1 ? 1.0 : place.ly};
    const double x[2] = {kind == 2 ? -1.0 : 1.0 - place.lx, kind == 2 ? 1.0 : place.lx};
    double sum = 0;
    for (int n = 0; n < of.batch; ++n) {
        const T* gradient = of.grad_output + (static_cast<INDEX>(n) * of.units.targets + pair / of.units.sources) * plane;
        const ACC* image = of.image + (static_cast<INDEX>(n) * of.units.sources + pair % of.units.sources) * plane;
        for (INDEX p = threadIdx.x; p < plane; p += THREADS) {
            const int row = static_cast<int>(p / of.tile.width) + place.y, column = static_cast<int>(p % of.tile.width) + place.x;
            double read = 0;
            for (int k = 0; k < CORNERS; ++k) {
                const int i = row + k / 2, j = column + k % 2;
                const bool inside = of.tile.inside(i, j);
                const double pixel = inside ? image[static_cast<INDEX>(i) * of.tile.width + j] : ACC(0);
                read += y[k / 2] * x[k % 2] * pixel;
            }
            sum += load(gradient + p) * read;
        }
    }
    return block_total(sum);
}

// The four sums of a unit, from those of the line: the rows above and below are 0.
__device__ __forceinline__ void spread_line(const Place& place, double (&sum)[CORNERS]) {
    const bool upper = place.y == 0, lower = place.y == -1;
    const double value = sum[0], slope = sum[2], ly = place.ly;
    sum[0] = upper ? (1 - ly) * value : lower ? ly * value : 0;
    sum[1] = upper ? -value : lower ? value : 0;
    sum[2] = upper ? slope : 0;
    sum[3] = lower ? slope : 0;
}

// `kind` as that of displaced_grad_units.
__device__ __forceinline__ void unit_gradients(const double* __restrict__ partial, const Correlation& of,
                                               T* __restrict__ grad_weight, T* __restrict__ grad_displacement,
                                               INDEX units, int slots, int kind) {
    __shared__ unsigned odd[WARPS];  // lanes of each warp whose unit has a sum that is not finite
    const INDEX unit = thread_index(), first = unit - threadIdx.x;
    auto write = [&](INDEX unit, double value, double slope_y, double slope_x) {
        const double w = load(of.units.weight + unit);
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
    auto placed = [&](INDEX unit) { return of.units.place(unit, of.tile.height, of.tile.width); };
    double sum[CORNERS] = {};
    if (unit < units)
        for (int slot = 0; slot < slots; ++slot) {
            const Pair* part = reinterpret_cast<const Pair*>(partial + (slot * units + unit) * CORNERS);
            const Pair upper = part[0], lower = part[1];
            sum[0] += upper.first;
            sum[1] += upper.second;
            sum[2] += lower.first;
            sum[3] += lower.second;
        }
    const double all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const bool finite = all - all == 0;
    const unsigned found = __ballot_sync(ALL_LANES, !finite);
    if (threadIdx.x % WARP == 0) odd[threadIdx.x / WARP] = found;
    if (unit < units && finite) {
        const Place place = placed(unit);
        if (LINE) spread_line(place, sum);
        const double y = place.ly;
        write(unit, sum[0], sum[1], (1 - y) * sum[2] + y * sum[3]);
    }
    __syncthreads();
    for (int k = 0; k < THREADS; ++k) {
        if (odd[k / WARP] == 0) {
            k += WARP - 1;
            continue;
        }
        if (!(odd[k / WARP] >> k % WARP & 1)) continue;
        double total[3] = {};
        const Place place = placed(first + k);
#pragma unroll
        for (int i = 0; i < 3; ++i)
            if (i == 0 || kind == 0) total[i] = defined_total(of, first + k, place, i);
        if (threadIdx.x == 0) write(first + k, total[0], total[1], total[2]);
    }
}
