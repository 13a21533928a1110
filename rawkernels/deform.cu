// deform: an image sampled at learned points. The columns of deform_conv2d, and their gradients; the matrix products
// are cuBLAS's, between the kernels.
//
//   x (N,C,H,W)  offset (N,D,taps,2,P)  mask (N,D,taps,P) or absent, P = Ho*Wo output positions
//   columns (G, rows, taps, C/G): row r = n*P + p of a tile, in the accumulator type
//   columns[g(c), r, t, c] = mask[n,d(c),t,p] * x[n,c](q(t,p) + offset[n,d(c),t,:,p])
//
// sample_points is the case of one group, no mask, and a regular grid with all steps 0.
//
// How work is laid out. x is first written channels last, (N,H,W,C), so that one corner of a point is one run of
// memory. A warp takes 32 adjacent rows of one (offset group, tap): each lane sets up one point, which coalesces the
// reading of offsets and masks. Then the points are worked off in rounds, which several warps share where there are few
// points: `lanes` lanes share a point, 32/lanes at once, each lane with VEC adjacent channels (16 bytes), and strides
// over the channels of the offset group. A point's set-up comes to its lanes by 5 shuffles, whatever the number of
// channels.
//
// Costs per column element: forward, a 16-byte load of each corner and a 16-byte store make 5 requests for 4 channels,
// 16 multiply-adds; memory traffic is the store, 4 bytes (the corners come from caches, as neighbouring points share
// them). Backward, the gradient of the columns is read and the columns are written in its place, and the four sums over
// channels from which all gradients of a point follow cost 4*log2(lanes) shuffles a point. Where the channels of an
// offset group fill a warp, that is 20 shuffles for 128 channels or more.
//
// The gradient of x is added up in a fixed order by the kernels of deform_lists.cuh or, where the order may be any, in
// float32 or float64 by atomics, channels last (deform_gradients).
//
// Registers: the launch bounds leave 85 a thread forward and 128 backward, for 24 and 16 warps of 64 on an SM; without
// a second bound, some compilers spill to fit more. tests/registers.json has all counts; nothing spills.
//
// Constants from the Python side:
//   VEC   channels of one access: divides C/G and C/D
//   POSITION, MASK   types of offset and mask: SCALAR, or float beside images of 16 bits
#ifndef VEC
#define VEC 4
#endif
#ifndef MASK
#define MASK SCALAR
#endif
#include "bilinear.cuh"

typedef MASK M;

struct Geometry {
    int channels, groups, offset_groups;
    int height, width, out_width;
    int positions;  // P
    int taps, kernel_w;
    int stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    int border;
};
// The last parameters of kernels, as that record. The launcher compares arguments with parameters as they are written:
// hence these are plain numbers, and spelled out.
#define GEOMETRY                                                                                       \
    {channels, groups,   offset_groups, height,     width,      out_width, positions, taps, kernel_w,  \
     stride_y, stride_x, dilation_y,    dilation_x, pad_y,      pad_x,     border}

// One point of a lane, the factor in front of it, and what the gradients need to know of where it came from.
struct Task {
    Point point;
    ACC factor;     // mask, or 1
    INDEX address;  // of the point's mask; its offsets are at 2*address - p and P further on
    INDEX p;
    bool there;  // whether the lane has a point
};

__device__ __forceinline__ Task set_up_task(
    const P* __restrict__ offset, const M* __restrict__ mask, INDEX global_row, bool there, int group, int tap,
    const Geometry& geo) {
    Task task = {{0, 0, ACC(0), ACC(0)}, ACC(0), 0, 0, there};
    if (!there) return task;
    const INDEX n = global_row / geo.positions, p = global_row - n * geo.positions;
    const int h = static_cast<int>(p) / geo.out_width, w = static_cast<int>(p) - h * geo.out_width;
    const int a = tap / geo.kernel_w, b = tap - a * geo.kernel_w;
    const INDEX plane = ((n * geo.offset_groups + group) * geo.taps + tap) * geo.positions;
    const Coordinate y = {h * geo.stride_y - geo.pad_y + a * geo.dilation_y,
                          load_coordinate(offset + 2 * plane + p)};
    const Coordinate x = {w * geo.stride_x - geo.pad_x + b * geo.dilation_x,
                          load_coordinate(offset + 2 * plane + geo.positions + p)};
    const INDEX image = static_cast<INDEX>(geo.height) * geo.width;
    task.point = set_up_point(y, x, n * image, geo.height, geo.width, geo.border);
    task.factor = mask == nullptr ? ACC(1) : load(mask + plane + p);
    task.address = plane + p;
    task.p = p;
    return task;
}

// The task of another lane: what its channels need.
__device__ __forceinline__ Task task_of_lane(const Task& mine, int lane) {
    Task task;
    task.point.corner = __shfl_sync(ALL_LANES, mine.point.corner, lane);
    task.point.inside = __shfl_sync(ALL_LANES, mine.point.inside, lane);
    task.point.ly = __shfl_sync(ALL_LANES, mine.point.ly, lane);
    task.point.lx = __shfl_sync(ALL_LANES, mine.point.lx, lane);
    task.factor = __shfl_sync(ALL_LANES, mine.factor, lane);
    return task;
}

// Which points a warp has: 32 rows of one (offset group, tap), of which it works on those of some rounds.
struct WarpItem {
    INDEX first_row;  // in the tile
    int group, tap;
    int first_round, rounds;
};

__device__ __forceinline__ WarpItem warp_item(INDEX warp, int rounds, int lanes, const Geometry& geo) {
    WarpItem item;
    item.rounds = rounds;
    item.first_round = rounds * take(warp, lanes / rounds);
    item.tap = take(warp, geo.taps);
    item.group = take(warp, geo.offset_groups);
    item.first_row = warp * WARP;
    return item;
}

// Where the columns of a channel lie.
__device__ __forceinline__ INDEX column_address(int channel, INDEX row, int tap, INDEX rows, const Geometry& geo) {
    const int size = geo.channels / geo.groups, group = geo.groups == 1 ? 0 : channel / size;
    return ((group * rows + row) * geo.taps + tap) * size + (channel - group * size);
}

extern "C" __global__ void __launch_bounds__(128, 6) deform_columns(
    const T* __restrict__ x, const P* __restrict__ offset, const M* __restrict__ mask, ACC* __restrict__ columns,
    INDEX items, INDEX start, INDEX rows, int lane_bits, int rounds, int channels, int groups, int offset_groups,
    int height, int width, int out_width, int positions, int taps, int kernel_w, int stride_y, int stride_x,
    int dilation_y, int dilation_x, int pad_y, int pad_x, int border) {
    const Geometry geo = GEOMETRY;
    const INDEX warp = thread_index() / WARP;
    if (warp >= items) return;
    const int lane = threadIdx.x % WARP, lanes = 1 << lane_bits, group_channels = channels / offset_groups;
    const WarpItem item = warp_item(warp, rounds, lanes, geo);
    const INDEX row_of_lane = item.first_row + lane;
    const Task mine = set_up_task(offset, mask, start + row_of_lane, row_of_lane < rows, item.group, item.tap, geo);
    for (int round = item.first_round; round < item.first_round + rounds; ++round) {
        const int source = round * (WARP >> lane_bits) + (lane >> lane_bits);
        const Task task = task_of_lane(mine, source);
        const INDEX row = item.first_row + source;
        if (row >= rows) continue;
        ACC weight[CORNERS];
        corner_weights(task.point.ly, task.point.lx, weight);
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) weight[k] *= task.factor;
        for (int c = (lane & (lanes - 1)) * VEC; c < group_channels; c += lanes * VEC) {
            const int channel = item.group * group_channels + c;
            ACC corner[CORNERS][VEC];
            load_corners(
                x, task.point.corner * channels + channel, channels, height, width, task.point.inside, corner);
            Sums value;
#pragma unroll
            for (int v = 0; v < VEC; ++v)
                value.value[v] = interpolate(weight, corner[0][v], corner[1][v], corner[2][v], corner[3][v]);
            *reinterpret_cast<Sums*>(columns + column_address(channel, row, item.tap, rows, geo)) = value;
        }
    }
}

// Reads the gradients of the columns and, if asked, writes the columns in their place. Arrays of gradients that are
// not wanted are null. They are written, or added to where other channels of the offset group came before (`add`); with
// the last channels the gradient of the offsets is complete.
extern "C" __global__ void __launch_bounds__(128, 4) deform_gradients(
    const T* __restrict__ x, const P* __restrict__ offset, const M* __restrict__ mask, ACC* __restrict__ columns,
    ACC* __restrict__ grad_x, P* __restrict__ grad_offset, M* __restrict__ grad_mask, int write_columns,
    int add, int last, INDEX items, INDEX start, INDEX rows, int lane_bits, int rounds, int channels, int groups,
    int offset_groups, int height, int width, int out_width, int positions, int taps, int kernel_w, int stride_y,
    int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x, int border) {
    const Geometry geo = GEOMETRY;
    const INDEX warp = thread_index() / WARP;
    if (warp >= items) return;
    const int lane = threadIdx.x % WARP, lanes = 1 << lane_bits, group_channels = channels / offset_groups;
    const WarpItem item = warp_item(warp, rounds, lanes, geo);
    const int at_once = WARP >> lane_bits;
    const INDEX row_of_lane = item.first_row + lane;
    const Task mine = set_up_task(offset, mask, start + row_of_lane, row_of_lane < rows, item.group, item.tap, geo);
    ACC sums_of_mine[CORNERS] = {};
    for (int round = item.first_round; round < item.first_round + rounds; ++round) {
        const int source = round * at_once + (lane >> lane_bits);
        const Task task = task_of_lane(mine, source);
        const INDEX row = item.first_row + source;
        const int end = row < rows ? group_channels : 0;
        ACC weight[CORNERS], sum[CORNERS] = {};
        corner_weights(task.point.ly, task.point.lx, weight);
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) weight[k] *= task.factor;
        for (int c = (lane & (lanes - 1)) * VEC; c < end; c += lanes * VEC) {
            const int channel = item.group * group_channels + c;
            const INDEX pixel = task.point.corner * channels + channel;
            ACC corner[CORNERS][VEC];
            load_corners(x, pixel, channels, height, width, task.point.inside, corner);
            Sums* place = reinterpret_cast<Sums*>(columns + column_address(channel, row, item.tap, rows, geo));
            Sums value = *place;
#pragma unroll
            for (int k = 0; k < CORNERS; ++k)
#pragma unroll
                for (int v = 0; v < VEC; ++v) sum[k] += value.value[v] * corner[k][v];
            if (grad_x != nullptr)
                add_to_corners(grad_x, pixel, channels, height, width, task.point.inside, weight, value.value);
            if (write_columns) {
#pragma unroll
                for (int v = 0; v < VEC; ++v)
                    value.value[v] = interpolate(weight, corner[0][v], corner[1][v], corner[2][v], corner[3][v]);
                *place = value;
            }
        }
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) {
            for (int step = lanes / 2; step > 0; step /= 2) sum[k] += __shfl_xor_sync(ALL_LANES, sum[k], step);
            // The sums of lane `lane`'s own point, if this round worked on it.
            const ACC total = __shfl_sync(ALL_LANES, sum[k], (lane & (at_once - 1)) << lane_bits);
            if (lane / at_once == round) sums_of_mine[k] = total;
        }
    }
    const int own_round = lane / at_once - item.first_round;
    if (!mine.there || own_round < 0 || own_round >= rounds) return;
    const PointGradient found = point_gradient(mine.point.ly, mine.point.lx, sums_of_mine);
    if (grad_offset != nullptr) {
        P* place = grad_offset + 2 * mine.address - mine.p;
        const ACC down = add ? load(place) + found.y : found.y;
        const ACC along = add ? load(place + positions) + found.x : found.x;
        // An infinite mask in front of one sum is not what it is in front of each part of that.
        store(place, last ? mine.factor * down : down);
        store(place + positions, last ? mine.factor * along : along);
    }
    if (grad_mask != nullptr)
        store(grad_mask + mine.address, add ? load(grad_mask + mine.address) + found.value : found.value);
}

#include "deform_lists.cuh"

// Transposition of matrices: out[j*out_row + i] = bias[j] + in[i*in_row + j], or += that. The matrices are
// numbered by two indices, of which `inner` runs over inner_count.
struct Matrices {
    INDEX rows, columns, in_row, out_row;
    INDEX inner_count, in_inner, out_inner, in_outer, out_outer;
};

constexpr int TILE = 32, TILE_ROWS = 8;  // threads of a block: (TILE, TILE_ROWS)

template <class In, class Out>
__device__ __forceinline__ void transpose(
    const In* __restrict__ in, const ACC* __restrict__ bias, Out* __restrict__ out, const Matrices& of, bool add) {
    __shared__ ACC tile[TILE][TILE + 1];
    INDEX flat = blockIdx.x;
    const INDEX first_column = TILE * take(flat, (of.columns + TILE - 1) / TILE);
    const INDEX first_row = TILE * take(flat, (of.rows + TILE - 1) / TILE);
    const INDEX inner = take(flat, of.inner_count), outer = flat;
    in += outer * of.in_outer + inner * of.in_inner;
    out += outer * of.out_outer + inner * of.out_inner;
    const INDEX column = first_column + threadIdx.x;
    for (int y = threadIdx.y; y < TILE; y += TILE_ROWS) {
        const INDEX row = first_row + y;
        if (row >= of.rows || column >= of.columns) continue;
        const ACC more = bias == nullptr ? ACC(0) : bias[inner * of.columns + column];
        tile[y][threadIdx.x] = more + load(in + row * of.in_row + column);
    }
    __syncthreads();
    const INDEX row = first_row + threadIdx.x;
    for (int y = threadIdx.y; y < TILE; y += TILE_ROWS) {
        const INDEX to = first_column + y;
        if (row >= of.rows || to >= of.columns) continue;
        Out* target = out + to * of.out_row + row;
        store(target, add ? load(target) + tile[threadIdx.x][y] : tile[threadIdx.x][y]);
    }
}

// x to channels last.
extern "C" __global__ void __launch_bounds__(256, 3) deform_transpose(
    const T* __restrict__ in, const ACC* __restrict__ bias, T* __restrict__ out, INDEX rows, INDEX columns, INDEX in_row,
    INDEX out_row, INDEX inner_count, INDEX in_inner, INDEX out_inner, INDEX in_outer, INDEX out_outer, int add) {
    transpose(in, bias, out, {rows, columns, in_row, out_row, inner_count, in_inner, out_inner, in_outer, out_outer},
              add != 0);
}

// To the accumulator type: gradients of the output.
extern "C" __global__ void __launch_bounds__(256, 3) deform_transpose_in(
    const T* __restrict__ in, const ACC* __restrict__ bias, ACC* __restrict__ out, INDEX rows, INDEX columns,
    INDEX in_row, INDEX out_row, INDEX inner_count, INDEX in_inner, INDEX out_inner, INDEX in_outer, INDEX out_outer,
    int add) {
    transpose(in, bias, out, {rows, columns, in_row, out_row, inner_count, in_inner, out_inner, in_outer, out_outer},
              add != 0);
}

// From the accumulator type: outputs, and the gradient of x.
extern "C" __global__ void __launch_bounds__(256, 3) deform_transpose_out(
    const ACC* __restrict__ in, const ACC* __restrict__ bias, T* __restrict__ out, INDEX rows, INDEX columns,
    INDEX in_row, INDEX out_row, INDEX inner_count, INDEX in_inner, INDEX out_inner, INDEX in_outer, INDEX out_outer,
    int add) {
    transpose(in, bias, out, {rows, columns, in_row, out_row, inner_count, in_inner, out_inner, in_outer, out_outer},
              add != 0);
}
