// Small kernels whose costs can be worked out by hand: what backend "ptx" counts of them is in test_ptx_counting.py.
#include "common.cuh"

constexpr int SIDE = 32;

extern "C" __global__ void copy(const float* __restrict__ x, float* __restrict__ y, int count, int step, int shift) {
    const int i = thread_index();
    if (i < count) y[i] = x[i * step + shift];
}

extern "C" __global__ void copy_pairs(const float* __restrict__ x, float* __restrict__ y, int shift) {
    const float2 pair = *reinterpret_cast<const float2*>(x + 2 * threadIdx.x + shift);
    y[threadIdx.x] = pair.x + pair.y;
}

// One block of 32 x 32 threads.
extern "C" __global__ void transpose(const float* __restrict__ x, float* __restrict__ y) {
    __shared__ float tile[SIDE][SIDE];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * SIDE + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * SIDE + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}

extern "C" __global__ void transpose_padded(const float* __restrict__ x, float* __restrict__ y) {
    __shared__ float tile[SIDE][SIDE + 1];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * SIDE + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * SIDE + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}

extern "C" __global__ void shared_fours(const float* __restrict__ x, float* __restrict__ y, int step) {
    __shared__ float4 tile[4 * SIDE];
    for (int i = 0; i < 4; ++i) tile[i * SIDE + threadIdx.x] = make_float4(x[threadIdx.x], 0, 0, 0);
    __syncthreads();
    const float4 four = tile[threadIdx.x * step];
    y[threadIdx.x] = four.x + four.y + four.z + four.w;
}

extern "C" __global__ void divide(const int* __restrict__ x, float* __restrict__ y, int divisor) {
    y[thread_index()] = static_cast<float>(x[thread_index()] / divisor);
}

extern "C" __global__ void divide_by_seven(const int* __restrict__ x, float* __restrict__ y) {
    y[thread_index()] = static_cast<float>(x[thread_index()] / 7);
}

extern "C" __global__ void histogram(const int* __restrict__ x, int* __restrict__ counts) {
    atomicAdd(counts + x[thread_index()], 1);
}

// Lane L takes L rounds.
extern "C" __global__ void triangle(const float* __restrict__ x, float* __restrict__ y) {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < threadIdx.x; ++i) sum += x[i * SIDE + threadIdx.x];
    y[threadIdx.x] = sum;
}

// Odd lanes read in even rounds, even lanes in odd ones.
extern "C" __global__ void chequered(const float* __restrict__ x, float* __restrict__ y) {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < 8; ++i)
        if ((threadIdx.x + i) % 2) sum += x[i * SIDE + threadIdx.x];
    y[threadIdx.x] = sum;
}

// Three rounds, in each of which lane L reads L % 3 times.
extern "C" __global__ void nested(const float* __restrict__ x, float* __restrict__ y) {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < 3; ++i)
#pragma unroll 1
        for (int j = 0; j < threadIdx.x % 3; ++j) sum += x[(2 * i + j) * SIDE + threadIdx.x];
    y[threadIdx.x] = sum;
}

extern "C" __global__ void half_a_warp(const float* __restrict__ x, float* __restrict__ y) {
    if (threadIdx.x % WARP >= 16) return;
    y[thread_index()] = x[thread_index()];
}
