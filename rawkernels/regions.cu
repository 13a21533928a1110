// Regions of images: means of bilinear samples, means of pixels of maps by position, and their gradients as sums over
// the regions that a pixel is read by; and of overlapping boxes those of the highest scores.
//
//   x (N,C,H,W)  boxes (R,4): x0, y0, x1, y1  images (R)  y (R,C,ph,pw), or (R,C/(ph*pw),ph,pw) of maps by position
//
// Where the bins of a box lie is worked out once, in double precision, for both passes: along y and along x,
// `bins` = ph + pw in all, and so for each region ph of them and then pw. Pixels are numbered from 0, positions may lie
// between them. A box that leads nowhere has the number LOST of samples or pixels in each bin.
#ifndef VEC
#define VEC 1
#endif
#include "bilinear.cuh"

constexpr int BLOCK = 128;
constexpr int STRIP = 4;  // channels of a thread
constexpr int LOST = -1;
constexpr int TILE_H = 8, TILE_W = BLOCK / TILE_H;  // of pixels whose gradients a block adds up

// An axis of a region.
struct Box {
    double low, high;
    int bins, extent, bin;
};

// The bin that item i stands for, of (R, ph + pw).
__device__ __forceinline__ Box bin_of(const double* boxes, INDEX i, int ph, int pw, int height, int width, INDEX& r) {
    const int place = static_cast<int>(i % (ph + pw));
    r = i / (ph + pw);
    const bool along_y = place < ph;
    const double* box = boxes + 4 * r + (along_y ? 1 : 0);
    return {box[0], box[2], along_y ? ph : pw, along_y ? height : width, along_y ? place : place - ph};
}

__device__ __forceinline__ bool is_finite(double value) { return value - value == 0; }

// To whole numbers, halves away from zero.
__device__ __forceinline__ double rounded(double value) {
    const double size = fabs(value), whole = floor(size), nearest = size - whole >= 0.5 ? whole + 1 : whole;
    return value < 0 ? -nearest : nearest;
}

// Products that no sum is fused with: positions are rounded at each step, as in the definition, so that a sample on a
// pixel is there in both.
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }

// Of the samples of each bin those that are no more than a pixel outside: they are at base + (begin + k) * step. In
// single precision they are counted from the first of them, as the base may be far away. Of each region, the rows and
// columns outside of which it reads nothing, from and to.
extern "C" __global__ void __launch_bounds__(BLOCK) roi_align_bins(
    const double* __restrict__ boxes, P* __restrict__ bases, P* __restrict__ begins, P* __restrict__ step,
    P* __restrict__ rate, P* __restrict__ share, int* __restrict__ number, int* __restrict__ windows, INDEX items,
    double scale, int ratio, int aligned, int ph, int pw, int height, int width) {
    const INDEX i = thread_index();
    if (i >= items) return;
    INDEX r;
    const Box box = bin_of(boxes, i, ph, pw, height, width, r);
    const double half = aligned ? 0.5 : 0.0, start = product(box.low, scale) - half;
    double extent = (product(box.high, scale) - half) - start;
    int* window = windows + 4 * r + (i % (ph + pw) < ph ? 0 : 2);
    bases[i] = begins[i] = step[i] = rate[i] = share[i] = 0;
    number[i] = LOST;
    if (box.bin == 0) window[0] = window[1] = 0;
    if (!is_finite(start) || !is_finite(extent)) return;
    if (!aligned && extent < 1) extent = 1;
    const double size = extent / box.bins, count = ratio > 0 ? static_cast<double>(ratio) : ceil(size);
    number[i] = 0;
    if (count < 1) return;
    if (box.bin == 0) {  // one more at either end, as positions are rounded
        const double end = start + product(box.bins, size), last = box.extent - 1;
        window[0] = static_cast<int>(min(max(min(start, end), 0.0), last)) - 1;
        window[1] = static_cast<int>(min(max(max(start, end), 0.0), last)) + 3;
    }
    const double apart = size / count, base = start + product(box.bin, size);
    double begin = 0, most = count;
    if (apart != 0) {  // of samples without end, the few that are near the image
        const double one = (-1 - base) / apart - 0.5, other = (box.extent - base) / apart - 0.5;
        begin = min(max(floor(min(one, other)) - 1, 0.0), count);
        most = min(max(ceil(max(one, other)) + 2 - begin, 0.0), count - begin);
        most = min(most, (box.extent + 1) / fabs(apart) + 5);
    }
    int low = 0, high = static_cast<int>(most);
    while (low < high) {  // those outside are at both ends
        const double at = base + product(begin + low + 0.5, apart);
        if (at >= -1 && at <= box.extent) break;
        ++low;
    }
    while (low < high) {
        const double at = base + product(begin + (high - 1) + 0.5, apart);
        if (at >= -1 && at <= box.extent) break;
        --high;
    }
    const bool far = sizeof(P) < sizeof(double);
    begins[i] = static_cast<P>(far ? 0 : begin + low + 0.5);
    bases[i] = static_cast<P>(far ? base + product(begin + low + 0.5, apart) : base);
    step[i] = static_cast<P>(apart);
    rate[i] = static_cast<P>(apart != 0 ? 1 / apart : 0);
    share[i] = static_cast<P>(1 / count);
    number[i] = high - low;
}

// The first pixel of each bin, and how many there are.
extern "C" __global__ void __launch_bounds__(BLOCK) ps_roi_pool_bins(
    const double* __restrict__ boxes, int* __restrict__ first, int* __restrict__ number, INDEX items, double scale,
    int ph, int pw, int height, int width) {
    const INDEX i = thread_index();
    if (i >= items) return;
    INDEX r;
    const Box box = bin_of(boxes, i, ph, pw, height, width, r);
    const double start = product(rounded(box.low), scale);
    double extent = product(rounded(box.high) + 1, scale) - start;
    first[i] = 0;
    number[i] = LOST;
    if (!is_finite(start) || !is_finite(extent)) return;
    if (extent < 0.1) extent = 0.1;
    const double low = floor(product(box.bin, extent) / box.bins + start);
    const double high = ceil(product(box.bin + 1, extent) / box.bins + start);
    const double inside = min(max(low, 0.0), static_cast<double>(box.extent));
    first[i] = static_cast<int>(inside);
    number[i] = static_cast<int>(max(min(max(high, 0.0), static_cast<double>(box.extent)) - inside, 0.0));
}

// Tables of where bins lie; `rest` is by how much a sample is beyond a whole pixel.
struct Samples {
    const P* __restrict__ bases;
    const P* __restrict__ begins;
    const P* __restrict__ step;
    const P* __restrict__ rate;  // samples a pixel: 1 / step
    const P* __restrict__ share;
    const int* __restrict__ number;

    __device__ __forceinline__ P position(INDEX bin, int k) const {
        return bases[bin] + product(begins[bin] + k, step[bin]);
    }

    // Sample k of a bin: the last pixel up to there, and the rest. Between the last pixel and the end it is there.
    __device__ __forceinline__ int split(INDEX bin, int k, int extent, ACC& rest) const {
        P at = position(bin, k);
        at = at < 0 ? P(0) : at > extent - 1 ? P(extent - 1) : at;
        const P whole = floor(at);
        rest = static_cast<ACC>(at - whole);
        return static_cast<int>(whole);
    }
};

__device__ __forceinline__ ACC not_a_number() {
    const ACC zero = 0;
    return zero / zero;
}

// A thread makes one bin of STRIP channels.
extern "C" __global__ void __launch_bounds__(BLOCK, 4) roi_align_forward(
    const T* __restrict__ x, const long long* __restrict__ images, const P* __restrict__ bases,
    const P* __restrict__ begins, const P* __restrict__ step, const P* __restrict__ rate, const P* __restrict__ share,
    const int* __restrict__ number, T* __restrict__ y, INDEX items, int batch, int channels, int height, int width,
    int ph, int pw) {
    INDEX item = thread_index();
    if (item >= items) return;
    const int place = static_cast<int>(take(item, ph * pw)), strips = (channels + STRIP - 1) / STRIP;
    const int channel = STRIP * static_cast<int>(take(item, strips)), here = min(STRIP, channels - channel);
    const Samples samples = {bases, begins, step, rate, share, number};
    const INDEX row = item * (ph + pw) + place / pw, column = item * (ph + pw) + ph + place % pw;
    const long long n = images[item];
    const int down = number[row], across = number[column];
    ACC sum[STRIP] = {};
    if (n < 0 || n >= batch || (down == LOST && across != 0) || (across == LOST && down != 0)) {
#pragma unroll
        for (int s = 0; s < STRIP; ++s) sum[s] = not_a_number();
    } else {
        const INDEX pixels = static_cast<INDEX>(height) * width;
        const INDEX plane = (static_cast<INDEX>(n) * channels + channel) * pixels;
        for (int a = 0; a < down; ++a) {
            Coordinate at_y = {0, 0};
            at_y.base = samples.split(row, a, height, at_y.offset);
            for (int b = 0; b < across; ++b) {
                Coordinate at_x = {0, 0};
                at_x.base = samples.split(column, b, width, at_x.offset);
                const Point point = set_up_point(at_y, at_x, plane, height, width, EDGE);
                ACC weight[CORNERS];
                corner_weights(point.ly, point.lx, weight);
#pragma unroll
                for (int s = 0; s < STRIP; ++s) {
                    if (s >= here) break;
                    ACC corner[CORNERS][VEC];
                    load_corners(x, point.corner + s * pixels, 1, height, width, point.inside, corner);
                    sum[s] += interpolate(weight, corner[0][0], corner[1][0], corner[2][0], corner[3][0]);
                }
            }
        }
        const ACC mean = static_cast<ACC>(share[row]) * static_cast<ACC>(share[column]);
#pragma unroll
        for (int s = 0; s < STRIP; ++s) sum[s] *= mean;
    }
    T* target = y + (item * channels + channel) * (ph * pw) + place;
    for (int s = 0; s < here; ++s) store(target + s * (ph * pw), sum[s]);
}

// How much of a pixel is in a bin, along one axis, and whether it is in a sample with a weight of 0, which times
// infinity is NaN. False if it is in none.
struct Share {
    ACC weight;
    bool zero;
};

__device__ __forceinline__ bool share_of_pixel(
    const Samples& samples, INDEX bin, int pixel, int extent, Share& found) {
    const int count = samples.number[bin];
    if (count <= 0) return false;
    const P from = samples.position(bin, 0), last = samples.position(bin, count - 1), apart = samples.step[bin];
    // Only samples less than a pixel away; those before the first pixel count as there.
    const P begin = pixel <= 1 ? P(-1) : P(pixel - 1), end = pixel + 1;
    if (max(from, last) < begin || min(from, last) > end) return false;
    int low = 0, high = count;
    if (apart != 0) {
        const P one = (begin - from) * samples.rate[bin], other = (end - from) * samples.rate[bin];
        low = static_cast<int>(min(max(floor(min(one, other)) - 1, P(0)), P(count)));
        high = static_cast<int>(min(max(ceil(max(one, other)) + 2, P(0)), P(count)));
    }
    bool any = false;
    found = {0, false};
    for (int k = low; k < high; ++k) {
        ACC rest;
        const int before = samples.split(bin, k, extent, rest);
        if (before != pixel && before + 1 != pixel) continue;
        any = true;
        if (before != pixel) rest = ACC(1) - rest;
        found.weight += ACC(1) - rest;
        found.zero |= rest == ACC(1) || before == extent - 1;
    }
    found.weight *= static_cast<ACC>(samples.share[bin]);
    return any;
}

// A tile of pixels, of some channels of an image, which a block owns: one of them each thread.
struct Tile {
    INDEX plane;  // or several of them
    int top, left, row, column;
    bool inside;

    __device__ __forceinline__ bool meets(int from_y, int to_y, int from_x, int to_x) const {
        return from_y < top + TILE_H && to_y > top && from_x < left + TILE_W && to_x > left;
    }
};

__device__ __forceinline__ Tile own_tile(int height, int width) {
    const int down = (height + TILE_H - 1) / TILE_H, across = (width + TILE_W - 1) / TILE_W;
    INDEX block = blockIdx.x;
    Tile tile;
    tile.left = TILE_W * static_cast<int>(take(block, across));
    tile.top = TILE_H * static_cast<int>(take(block, down));
    tile.plane = block;
    tile.row = tile.top + threadIdx.x / TILE_W;
    tile.column = tile.left + threadIdx.x % TILE_W;
    tile.inside = tile.row < height && tile.column < width;
    return tile;
}

// The regions that meet a tile, one after the other: each thread looks at one, and then all at those that were found.
template <typename Meets, typename Visit>
__device__ __forceinline__ void each_region(int regions, Meets meets, Visit visit) {
    __shared__ unsigned found[BLOCK / WARP];
    for (int begin = 0; begin < regions; begin += BLOCK) {
        const int own = begin + threadIdx.x;
        const unsigned mine = __ballot_sync(ALL_LANES, own < regions && meets(own));
        if (threadIdx.x % WARP == 0) found[threadIdx.x / WARP] = mine;
        __syncthreads();
        for (int warp = 0; warp < BLOCK / WARP; ++warp)
            for (unsigned rest = found[warp]; rest != 0; rest &= rest - 1)
                visit(begin + WARP * warp + __ffs(static_cast<int>(rest)) - 1);
        __syncthreads();
    }
}

// A thread adds up what one pixel of STRIP channels gets of one region after the other.
extern "C" __global__ void __launch_bounds__(BLOCK, 6) roi_align_gradient(
    const T* __restrict__ grad, const long long* __restrict__ images, const P* __restrict__ bases,
    const P* __restrict__ begins, const P* __restrict__ step, const P* __restrict__ rate, const P* __restrict__ share,
    const int* __restrict__ number, const int* __restrict__ windows, T* __restrict__ grad_x, int regions,
    int channels, int height, int width, int ph, int pw) {
    const Tile tile = own_tile(height, width);
    const int strips = (channels + STRIP - 1) / STRIP;
    INDEX image = tile.plane;
    const int channel = STRIP * static_cast<int>(take(image, strips)), here = min(STRIP, channels - channel);
    const Samples samples = {bases, begins, step, rate, share, number};
    ACC sum[STRIP] = {};
    const auto meets = [&](int r) {
        const int* window = windows + 4 * static_cast<INDEX>(r);
        return images[r] == image && tile.meets(window[0], window[1], window[2], window[3]);
    };
    each_region(regions, meets, [&](int r) {
        const INDEX bins = static_cast<INDEX>(r) * (ph + pw);
        if (!tile.inside) return;
        for (int i = 0; i < ph; ++i) {
            Share by_row, by_column;
            if (!share_of_pixel(samples, bins + i, tile.row, height, by_row)) continue;
            for (int j = 0; j < pw; ++j) {
                if (!share_of_pixel(samples, bins + ph + j, tile.column, width, by_column)) continue;
                const ACC weight = by_row.weight * by_column.weight;
                const bool zero = by_row.zero || by_column.zero;
                const T* source = grad + ((static_cast<INDEX>(r) * channels + channel) * ph + i) * pw + j;
#pragma unroll
                for (int s = 0; s < STRIP; ++s) {
                    if (s >= here) break;
                    const ACC value = load(source + s * (ph * pw));
                    sum[s] += weight * value;
                    if (zero) sum[s] += ACC(0) * value;
                }
            }
        }
    });
    if (!tile.inside) return;
    T* target = grad_x + ((image * channels + channel) * height + tile.row) * width + tile.column;
    for (int s = 0; s < here; ++s) store(target + s * (static_cast<INDEX>(height) * width), sum[s]);
}

// A thread makes one output: the mean of the pixels of a bin, in the channel of that bin.
extern "C" __global__ void __launch_bounds__(BLOCK) ps_roi_pool_forward(
    const T* __restrict__ x, const long long* __restrict__ images, const int* __restrict__ first,
    const int* __restrict__ number, T* __restrict__ y, INDEX items, int batch, int channels, int height, int width,
    int ph, int pw) {
    const INDEX item = thread_index();
    if (item >= items) return;
    INDEX rest = item;
    const int channel = static_cast<int>(take(rest, channels)), place = channel % (ph * pw);
    const INDEX row = rest * (ph + pw) + place / pw, column = rest * (ph + pw) + ph + place % pw;
    const long long n = images[rest];
    const int down = number[row], across = number[column];
    ACC mean = 0;
    if (n < 0 || n >= batch || (down == LOST && across != 0) || (across == LOST && down != 0)) {
        mean = not_a_number();
    } else if (down > 0 && across > 0) {
        const INDEX plane = static_cast<INDEX>(n) * channels + channel;
        const T* line = x + (plane * height + first[row]) * width + first[column];
        for (int a = 0; a < down; ++a, line += width)
            for (int b = 0; b < across; ++b) mean += load(line + b);
        mean /= static_cast<ACC>(down) * across;
    }
    store(y + item, mean);
}

// A thread adds up what one pixel gets of one region after the other.
extern "C" __global__ void __launch_bounds__(BLOCK) ps_roi_pool_gradient(
    const T* __restrict__ grad, const long long* __restrict__ images, const int* __restrict__ first,
    const int* __restrict__ number, T* __restrict__ grad_x, int regions, int channels, int height, int width,
    int ph, int pw) {
    const Tile tile = own_tile(height, width);
    INDEX image = tile.plane;
    const int channel = static_cast<int>(take(image, channels)), place = channel % (ph * pw);
    const int in_row = place / pw, in_column = ph + place % pw;
    ACC sum = 0;
    const auto meets = [&](int r) {
        const INDEX bins = static_cast<INDEX>(r) * (ph + pw), i = bins + in_row, j = bins + in_column;
        return images[r] == image && tile.meets(first[i], first[i] + number[i], first[j], first[j] + number[j]);
    };
    each_region(regions, meets, [&](int r) {
        const INDEX bins = static_cast<INDEX>(r) * (ph + pw), i = bins + in_row, j = bins + in_column;
        const int down = tile.row - first[i], across = tile.column - first[j];
        if (down < 0 || down >= number[i] || across < 0 || across >= number[j]) return;
        sum += load(grad + static_cast<INDEX>(r) * channels + channel) / (static_cast<ACC>(number[i]) * number[j]);
    });
    if (tile.inside) store(grad_x + (tile.plane * height + tile.row) * width + tile.column, sum);
}

// One block goes through boxes in order, BLOCK at a time: first these strike out one another, then later ones. Nothing
// is ever there for each pair of boxes.
struct Sides {
    ACC x0, y0, x1, y1;

    __device__ __forceinline__ ACC area() const { return product(x1 - x0, y1 - y0); }

    __device__ __forceinline__ bool overlaps(const Sides& other, double threshold) const {
        const ACC width = min(x1, other.x1) - max(x0, other.x0), height = min(y1, other.y1) - max(y0, other.y0);
        // So boxes whose overlap is a round number are on the right side of it.
        const ACC shared = product(width > 0 ? width : ACC(0), height > 0 ? height : ACC(0));
        return static_cast<double>(shared / (area() + other.area() - shared)) > threshold;
    }
};

__device__ __forceinline__ Sides sides_of(const T* boxes) {
    return {load(boxes), load(boxes + 1), load(boxes + 2), load(boxes + 3)};
}

extern "C" __global__ void __launch_bounds__(BLOCK) nms_strike_out(
    const T* __restrict__ boxes, const long long* __restrict__ order, unsigned char* __restrict__ kept, INDEX count,
    double threshold) {
    __shared__ Sides pivots[BLOCK];
    __shared__ int alive[BLOCK];
    const int own = threadIdx.x;
    for (INDEX i = own; i < count; i += BLOCK) kept[i] = 1;
    __syncthreads();
    for (INDEX begin = 0; begin < count; begin += BLOCK) {
        const int here = static_cast<int>(min(static_cast<INDEX>(BLOCK), count - begin));
        if (own < here) {
            pivots[own] = sides_of(boxes + 4 * order[begin + own]);
            alive[own] = kept[begin + own];
        }
        __syncthreads();
        for (int pivot = 0; pivot < here; ++pivot) {
            if (alive[pivot] && own > pivot && own < here && pivots[pivot].overlaps(pivots[own], threshold))
                alive[own] = 0;
            __syncthreads();
        }
        if (own < here) kept[begin + own] = static_cast<unsigned char>(alive[own]);
        for (INDEX i = begin + here + own; i < count; i += BLOCK) {
            if (!kept[i]) continue;
            const Sides box = sides_of(boxes + 4 * order[i]);
            for (int pivot = 0; pivot < here; ++pivot)
                if (alive[pivot] && pivots[pivot].overlaps(box, threshold)) {
                    kept[i] = 0;
                    break;
                }
        }
        __syncthreads();
    }
}
