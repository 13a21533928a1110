#pragma once
// The gradient of x in a fixed order, without atomics on its sums: a block owns a patch of an image and 32 channels,
// and adds to its sums in shared memory what the points that reach the patch give, from a list. Each of its warps adds
// a quarter of the list, one point after the other, to sums of its own; these are added up at the end.
//
// The lists are made first, by counting. A set is the points of one image of the tile and one offset group, numbered
// tap*each + row, where the image has `each` rows in the tile; they are cut into runs, each for a warp, which appends
// its points to the lists in their order. Counted once (deform_count_points), runs know where in each list they begin
// (deform_start_lists), and write (deform_list_points). Where the lists lie depends on the order in which their lengths
// are added up; what is in them, and in which order, does not, and so no sum does.
//
// A point is in the list of each patch that one of its corners inside the image lies in: 45 lists for 32 points. Costs
// per point and 32 channels: the read of the gradient of its columns, 128 bytes, and four sums in shared memory, read
// and written by all lanes without a conflict of banks. Eight reads of gradients are in flight at once.
#include "bilinear.cuh"

constexpr int PATCH_HEIGHT = 4, PATCH_WIDTH = 8;
constexpr int PATCH_PIXELS = PATCH_HEIGHT * PATCH_WIDTH;  // one for each lane when sums are written
constexpr int OWNERS = 4;                                 // warps of a block
constexpr int IN_FLIGHT = 8;
constexpr int STARTING = 16;  // warps of a block of deform_start_lists
static_assert(PATCH_PIXELS == WARP, "a lane writes one pixel");

// How a tile's points are divided.
struct Sets {
    INDEX start, rows, each;  // first position of the tile, its rows, and those of one image
    int run, runs;            // points of a run, and runs of a set
    int patches_x, patches;   // of an image
};

__device__ __forceinline__ Sets divide(INDEX start, INDEX rows, int images, int run, const Geometry& geo) {
    Sets sets = {start, rows, rows / images, run, 0, (geo.width + PATCH_WIDTH - 1) / PATCH_WIDTH, 0};
    sets.runs = static_cast<int>((sets.each * geo.taps + run - 1) / run);
    sets.patches = sets.patches_x * ((geo.height + PATCH_HEIGHT - 1) / PATCH_HEIGHT);
    return sets;
}

// A point of a set, its tap and its row in the tile.
struct Member {
    Task task;
    int tap;
    INDEX row;
};

__device__ __forceinline__ Member set_up_member(
    const P* __restrict__ offset, const M* __restrict__ mask, INDEX number, bool there, int image, int group,
    const Sets& sets, const Geometry& geo) {
    Member member;
    member.tap = static_cast<int>(number / sets.each);
    const INDEX row = number - member.tap * sets.each;
    member.row = image * sets.each + row;
    const INDEX place = static_cast<INDEX>(image) * geo.positions + sets.start + row;
    member.task = set_up_task(offset, mask, place, there, group, member.tap, geo);
    return member;
}

// Row and column of the top left corner of a point with a corner inside: from -1 on.
__device__ __forceinline__ void find_corner(
    const Point& point, int image, const Geometry& geo, int& row, int& column) {
    const int outside = (point.inside & 5) == 0;  // column -1
    const INDEX pixel = point.corner - static_cast<INDEX>(image) * geo.height * geo.width + outside + geo.width;
    const int below = static_cast<int>(pixel / geo.width);
    row = below - 1;
    column = static_cast<int>(pixel - static_cast<INDEX>(below) * geo.width) - outside;
}

// The patches that a point reaches: that of its first corner, and how many those of the others are below and beside it.
struct Reach {
    bool any;
    int first, down, right;

    // The patch of a corner, where no corner before it has the same.
    __device__ __forceinline__ bool find(int corner, const Sets& sets, int& patch) const {
        patch = first + (corner & 2 ? down * sets.patches_x : 0) + (corner & 1 ? right : 0);
        return any && (corner < 2 || down != 0) && ((corner & 1) == 0 || right != 0);
    }
};

__device__ __forceinline__ Reach find_reach(const Point& point, int image, const Sets& sets, const Geometry& geo) {
    Reach reach = {point.inside != 0, 0, 0, 0};
    if (!reach.any) return reach;
    int row, column;
    find_corner(point, image, geo, row, column);
    const int top = max(row, 0) / PATCH_HEIGHT, left = max(column, 0) / PATCH_WIDTH;
    reach.first = top * sets.patches_x + left;
    const int below = row + step_along(point.inside, ROW_STEP, geo.height);
    const int beside = column + step_along(point.inside, COLUMN_STEP, geo.width);
    reach.down = min(below, geo.height - 1) / PATCH_HEIGHT - top;
    reach.right = min(beside, geo.width - 1) / PATCH_WIDTH - left;
    return reach;
}

// `counts` becomes the number of points of each (set, run, patch), and one more number 0.
extern "C" __global__ void __launch_bounds__(128, 4) deform_count_points(
    const P* __restrict__ offset, int* __restrict__ counts, INDEX items, INDEX start, INDEX rows, int images, int run,
    int channels, int groups, int offset_groups, int height, int width, int out_width, int positions, int taps,
    int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y, int pad_x, int border) {
    const Geometry geo = GEOMETRY;
    const Sets sets = divide(start, rows, images, run, geo);
    INDEX warp = thread_index() / WARP;
    if (warp >= items) return;
    if (thread_index() == 0) counts[items * sets.patches] = 0;
    counts += warp * sets.patches;
    const int lane = threadIdx.x % WARP;
    for (int patch = lane; patch < sets.patches; patch += WARP) counts[patch] = 0;
    __syncwarp();
    const INDEX begin = take(warp, sets.runs) * run, end = min(begin + run, sets.each * taps);
    const int group = static_cast<int>(take(warp, offset_groups)), image = static_cast<int>(warp);
    for (INDEX number = begin + lane; number < end; number += WARP) {
        const Member member = set_up_member(offset, nullptr, number, true, image, group, sets, geo);
        const Reach reach = find_reach(member.task.point, image, sets, geo);
        int patch;
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner)
            if (reach.find(corner, sets, patch)) atomicAdd(counts + patch, 1);
    }
}

// Appends the points to the lists; `counts` holds where the next one of a run goes.
extern "C" __global__ void __launch_bounds__(128, 4) deform_list_points(
    const P* __restrict__ offset, int* __restrict__ counts, int* __restrict__ lists, INDEX items, INDEX start,
    INDEX rows, int images, int run, int channels, int groups, int offset_groups, int height, int width, int out_width,
    int positions, int taps, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y,
    int pad_x, int border) {
    const Geometry geo = GEOMETRY;
    const Sets sets = divide(start, rows, images, run, geo);
    INDEX warp = thread_index() / WARP;
    if (warp >= items) return;
    counts += warp * sets.patches;
    const INDEX begin = take(warp, sets.runs) * run, end = min(begin + run, sets.each * taps);
    const int group = static_cast<int>(take(warp, offset_groups)), image = static_cast<int>(warp);
    const int lane = threadIdx.x % WARP;
    for (INDEX first = begin; first < end; first += WARP) {
        const INDEX number = first + lane;
        const Member member = set_up_member(offset, nullptr, number, number < end, image, group, sets, geo);
        const Reach reach = find_reach(member.task.point, image, sets, geo);
        for (int corner = 0; corner < CORNERS; ++corner) {
            int patch;
            const bool mine = reach.find(corner, sets, patch);
            unsigned left_over = __ballot_sync(ALL_LANES, mine), alike = 0;
            if (left_over == 0) continue;
            while (left_over != 0) {  // one patch after the other
                const int one = __popc((left_over & (0u - left_over)) - 1u);  // the first lane
                const int its = __shfl_sync(ALL_LANES, patch, one);
                const bool here = mine && patch == its;
                const unsigned lanes = __ballot_sync(ALL_LANES, here);
                if (here) alike = lanes;
                left_over &= ~lanes;
            }
            int next = 0;
            if (mine) {
                next = counts[patch] + __popc(alike & ((1u << lane) - 1u));
                lists[next] = static_cast<int>(number);
            }
            __syncwarp();
            if (mine && alike >> lane == 1u) counts[patch] = next + 1;  // the last of them
            __syncwarp();
        }
    }
}

// Begin and length of each list, into `bounds` (sets, patches, 2); `counts` becomes where runs begin in it. What
// follows the counts is the number of places taken. A block has 32 patches of a set, and each of its warps some runs.
extern "C" __global__ void __launch_bounds__(512, 2) deform_start_lists(
    int* __restrict__ counts, int* __restrict__ bounds, int sets, int runs, int patches) {
    __shared__ int lengths[STARTING][WARP];
    __shared__ int begins[WARP];
    INDEX rest = blockIdx.x;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int patch = WARP * static_cast<int>(take(rest, (patches + WARP - 1) / WARP)) + lane;
    int* taken = counts + static_cast<INDEX>(sets) * runs * patches;
    counts += rest * runs * patches + patch;
    const int share = (runs + STARTING - 1) / STARTING, end = patch < patches ? min(runs, (warp + 1) * share) : 0;
    int length = 0;
#pragma unroll 8
    for (int run = warp * share; run < end; ++run) length += counts[static_cast<INDEX>(run) * patches];
    lengths[warp][lane] = length;
    __syncthreads();
    if (warp == 0) {
        int all = 0;
#pragma unroll
        for (int other = 0; other < STARTING; ++other) all += lengths[other][lane];
        begins[lane] = all == 0 ? 0 : atomicAdd(taken, all);
        if (patch < patches) {
            bounds[2 * (rest * patches + patch)] = begins[lane];
            bounds[2 * (rest * patches + patch) + 1] = all;
        }
    }
    __syncthreads();
    int next = begins[lane];
    for (int other = 0; other < warp; ++other) next += lengths[other][lane];
#pragma unroll 4
    for (int run = warp * share; run < end; ++run) {
        int& count = counts[static_cast<INDEX>(run) * patches];
        const int here = count;
        count = next;
        next += here;
    }
}

// What a patch needs to know of a point, the same for all channels. It has no gap: whole vectors of it are read.
struct alignas(16) Reaching {
    ACC weight[CORNERS];
    long long column;  // where the point's columns begin, in those of a group
    int first;         // the sum of the top left corner, from where those of the patch begin
    int inside;        // bit k: corner k lies in the patch; and the steps to the next corners
};

typedef ACC Patch[PATCH_PIXELS][WARP + 1];

__device__ __forceinline__ Reaching set_up_reaching(
    const Member& member, int image, int first_row, int first_column, const Geometry& geo) {
    Reaching reaching;
    corner_weights(member.task.point.ly, member.task.point.lx, reaching.weight);
    int row, column, inside = ~ALL_INSIDE;
    find_corner(member.task.point, image, geo, row, column);
    const int below = step_along(member.task.point.inside, ROW_STEP, geo.height);
    const int beside = step_along(member.task.point.inside, COLUMN_STEP, geo.width);
    row -= first_row;
    column -= first_column;
#pragma unroll
    for (int k = 0; k < CORNERS; ++k) {
        const int y = row + (k & 2 ? below : 0), x = column + (k & 1 ? beside : 0);
        reaching.weight[k] *= member.task.factor;
        if (y >= 0 && y < PATCH_HEIGHT && x >= 0 && x < PATCH_WIDTH) inside |= 1 << k;
    }
    reaching.column = static_cast<long long>(member.row * geo.taps + member.tap) * (geo.channels / geo.groups);
    reaching.first = (row * PATCH_WIDTH + column) * (WARP + 1);
    reaching.inside = inside & member.task.point.inside;
    return reaching;
}

// Adds the gradient of one channel of a point to the sums of that channel, which are WARP + 1 apart.
__device__ __forceinline__ void add_to_patch(
    ACC* sums, const Reaching& reaching, ACC gradient, const Geometry& geo) {
    ACC* first = sums + reaching.first;
    if (reaching.inside == ALL_INSIDE) {
        ACC sum[CORNERS];
#pragma unroll
        for (int k = 0; k < CORNERS; ++k) sum[k] = first[corner_offset(k, WARP + 1, PATCH_WIDTH)];
#pragma unroll
        for (int k = 0; k < CORNERS; ++k)
            first[corner_offset(k, WARP + 1, PATCH_WIDTH)] = sum[k] + gradient * reaching.weight[k];
    } else {
#pragma unroll
        for (int k = 0; k < CORNERS; ++k)
            if (reaching.inside >> k & 1) {
                const int below = k & 2 ? step_along(reaching.inside, ROW_STEP, geo.height) : 0;
                const int beside = k & 1 ? step_along(reaching.inside, COLUMN_STEP, geo.width) : 0;
                first[(WARP + 1) * (below * PATCH_WIDTH + beside)] += gradient * reaching.weight[k];
            }
    }
}

// Writes a warp's share of the channels of a patch: the sums of all warps, after those of earlier tiles of the image,
// if there are any. `grad_x` is (images, C, H, W), from the first channel on.
template <class Out>
__device__ __forceinline__ void write_patch(
    Out* __restrict__ grad_x, const Patch (&sums)[OWNERS], int row, int column, int channels, bool add,
    const Geometry& geo) {
    const int lane = threadIdx.x % WARP;
    row += lane / PATCH_WIDTH;
    column += lane % PATCH_WIDTH;
    if (row >= geo.height || column >= geo.width) return;
    const INDEX pixels = static_cast<INDEX>(geo.height) * geo.width;
    for (int c = threadIdx.x / WARP; c < channels; c += OWNERS) {
        Out* target = grad_x + c * pixels + static_cast<INDEX>(row) * geo.width + column;
        ACC sum = sums[0][lane][c];
#pragma unroll
        for (int warp = 1; warp < OWNERS; ++warp) sum += sums[warp][lane][c];
        store(target, add ? load(target) + sum : sum);
    }
}

template <class Out>
__device__ __forceinline__ void add_lists(
    const P* __restrict__ offset, const M* __restrict__ mask, const ACC* __restrict__ columns,
    const int* __restrict__ bounds, const int* __restrict__ lists, Out* __restrict__ grad_x, bool add, const Sets& sets,
    const Geometry& geo) {
    __shared__ Patch sums[OWNERS];
    __shared__ Reaching reached[OWNERS][WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group_channels = geo.channels / geo.offset_groups;
    INDEX item = blockIdx.x;
    const int first_channel = WARP * static_cast<int>(take(item, (group_channels + WARP - 1) / WARP));
    const int list = bounds[2 * item], length = bounds[2 * item + 1];
    if (add && length == 0) return;
    const int patch = static_cast<int>(take(item, sets.patches)), patch_y = patch / sets.patches_x;
    const int first_row = patch_y * PATCH_HEIGHT, first_column = (patch - patch_y * sets.patches_x) * PATCH_WIDTH;
    const int group = static_cast<int>(take(item, geo.offset_groups)), image = static_cast<int>(item);
    // Where the columns of the lane's channel begin. A lane that has none adds up the first one, for nobody.
    const int here = min(WARP, group_channels - first_channel), base = group * group_channels + first_channel;
    columns += column_address(base + (lane < here ? lane : 0), 0, 0, sets.rows, geo);
#pragma unroll 8
    for (int pixel = 0; pixel < PATCH_PIXELS; ++pixel) sums[warp][pixel][lane] = ACC(0);
    const int share = (length + OWNERS * WARP - 1) / (OWNERS * WARP) * WARP, end = min(length, (warp + 1) * share);
    for (int first = warp * share; first < end; first += WARP) {
        const int count = min(WARP, end - first);
        if (lane < count) {
            const int number = lists[list + first + lane];
            const Member member = set_up_member(offset, mask, number, true, image, group, sets, geo);
            reached[warp][lane] = set_up_reaching(member, image, first_row, first_column, geo);
        } else {  // read like the others, and added nowhere
            reached[warp][lane] = Reaching{};
        }
        __syncwarp();
        for (int point = 0; point < count; point += IN_FLIGHT) {
            ACC gradient[IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; ++i)
                gradient[i] = columns[reached[warp][point + i].column];
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; ++i)
                add_to_patch(&sums[warp][0][lane], reached[warp][point + i], gradient[i], geo);
        }
        __syncwarp();
    }
    __syncthreads();
    grad_x += (static_cast<INDEX>(image) * geo.channels + base) * geo.height * geo.width;
    write_patch(grad_x, sums, first_row, first_column, here, add, geo);
}

extern "C" __global__ void __launch_bounds__(128, 6) deform_add_lists(
    const P* __restrict__ offset, const M* __restrict__ mask, const ACC* __restrict__ columns,
    const int* __restrict__ bounds, const int* __restrict__ lists, T* __restrict__ grad_x, int add, INDEX start,
    INDEX rows, int images, int run, int channels, int groups, int offset_groups, int height, int width, int out_width,
    int positions, int taps, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y,
    int pad_x, int border) {
    const Geometry geo = GEOMETRY;
    add_lists(offset, mask, columns, bounds, lists, grad_x, add != 0, divide(start, rows, images, run, geo), geo);
}

// The same into sums of the accumulator type, where an image is added up from several tiles.
extern "C" __global__ void __launch_bounds__(128, 6) deform_add_lists_wide(
    const P* __restrict__ offset, const M* __restrict__ mask, const ACC* __restrict__ columns,
    const int* __restrict__ bounds, const int* __restrict__ lists, ACC* __restrict__ grad_x, int add, INDEX start,
    INDEX rows, int images, int run, int channels, int groups, int offset_groups, int height, int width, int out_width,
    int positions, int taps, int kernel_w, int stride_y, int stride_x, int dilation_y, int dilation_x, int pad_y,
    int pad_x, int border) {
    const Geometry geo = GEOMETRY;
    add_lists(offset, mask, columns, bounds, lists, grad_x, add != 0, divide(start, rows, images, run, geo), geo);
}
