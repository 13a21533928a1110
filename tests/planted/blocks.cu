// Small kernels that use what the shim of the host build has to get right, or make one mistake that it has to catch.
#include "common.cuh"

// Sum of a block in two stages: shuffles within a warp, then shared memory. Lanes past the end return before nothing.
extern "C" __global__ void block_sums(const T* __restrict__ source, T* __restrict__ sums, int count) {
    __shared__ ACC warps[WARP];
    const int i = thread_index();
    ACC value = i < count ? load(source + i) : ACC(0);
    for (int half = WARP / 2; half > 0; half /= 2) value += __shfl_down_sync(ALL_LANES, value, half);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = value;
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    value = threadIdx.x < blockDim.x / WARP ? warps[threadIdx.x] : ACC(0);
    for (int half = WARP / 2; half > 0; half /= 2) value += __shfl_xor_sync(ALL_LANES, value, half);
    if (threadIdx.x == 0) store(sums + blockIdx.x, value);
}

// Reverse each block through dynamic shared memory, threads past the end having returned before the barrier.
extern "C" __global__ void reverse(const T* __restrict__ source, T* __restrict__ target, int count) {
    extern __shared__ ACC tile[];
    if (thread_index() >= count) return;
    const int size = min(static_cast<int>(blockDim.x), count - static_cast<int>(blockIdx.x * blockDim.x));
    tile[threadIdx.x] = load(source + thread_index());
    __syncthreads();
    store(target + thread_index(), tile[size - 1 - threadIdx.x]);
}

// Rotate a tile `rounds` times: each round needs a barrier after reading and another after writing.
extern "C" __global__ void rotate(const T* __restrict__ source, T* __restrict__ target, int rounds) {
    extern __shared__ ACC tile[];
    tile[threadIdx.x] = load(source + threadIdx.x);
    __syncthreads();
    for (int round = 0; round < rounds; ++round) {
        const ACC next = tile[(threadIdx.x + 1) % blockDim.x];
        __syncthreads();  // after reading
        tile[threadIdx.x] = next;
        __syncthreads();  // after writing
    }
    store(target + threadIdx.x, tile[threadIdx.x]);
}

// Every warp operation, in its segments; outputs of lane L are at result[L*6 ...].
extern "C" __global__ void warp_operations(const int* __restrict__ source, int* __restrict__ result) {
    const int value = source[threadIdx.x], lane = threadIdx.x % WARP;
    int* mine = result + 6 * threadIdx.x;
    mine[0] = __shfl_sync(ALL_LANES, value, lane + 3, 8);
    mine[1] = __shfl_up_sync(ALL_LANES, value, 2, 16);
    mine[2] = __shfl_down_sync(ALL_LANES, value, 5);
    mine[3] = static_cast<int>(__ballot_sync(ALL_LANES, value % 3 == 0));
    mine[4] = __any_sync(ALL_LANES, value == 7) + 2 * __all_sync(ALL_LANES, value >= 0);
    mine[5] = -1;
    if (lane >= 8) return;
    mine[5] = __shfl_xor_sync(0xffu, value, 4);  // the others have returned
}

extern "C" __global__ void count_values(const int* __restrict__ source, int* __restrict__ counts, int count) {
    const int i = thread_index();
    if (i < count) atomicAdd(counts + source[i], 1);
}

extern "C" __global__ void swap_pairs(const float* __restrict__ source, float* __restrict__ target) {
    const float4 four = reinterpret_cast<const float4*>(source)[threadIdx.x];
    reinterpret_cast<float4*>(target)[threadIdx.x] = make_float4(four.y, four.x, four.w, four.z);
}

// ---- mistakes -----------------------------------------------------------------------------------------------------
extern "C" __global__ void write_outside(T* __restrict__ target, int offset) { store(target + offset, ACC(1)); }

extern "C" __global__ void read_outside(const T* __restrict__ source, T* __restrict__ target, int offset) {
    store(target, load(source + offset));
}

extern "C" __global__ void divergent_barrier(T* __restrict__ target) {
    if (threadIdx.x < WARP) __syncthreads();
    else __syncwarp();
    if (threadIdx.x == WARP) __shfl_sync(ALL_LANES, 1, 0);  // the rest of its warp goes another way
    else __syncthreads();
    store(target, ACC(1));
}

extern "C" __global__ void excluded_lane(int* __restrict__ target) { target[threadIdx.x] = __shfl_sync(1u, 1, 0); }

extern "C" __global__ void shared_overrun(T* __restrict__ target) {
    extern __shared__ ACC tile[];
    tile[threadIdx.x] = ACC(1);
    store(target + threadIdx.x, tile[threadIdx.x]);
}

extern "C" __global__ void unwritten_shared(T* __restrict__ target) {
    extern __shared__ ACC tile[];
    __shared__ ACC fixed[WARP];
    if (threadIdx.x % 2) fixed[threadIdx.x] = tile[threadIdx.x] = ACC(1);
    store(target + threadIdx.x, tile[threadIdx.x] + fixed[threadIdx.x]);
}
