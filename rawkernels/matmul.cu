// Products of stacks of matrices, for where no library may be called: while CuPy captures a stream.
//
// c[i] = a[i] b[i], in C order: a (batch, rows, depth), b (batch, depth, columns), c (batch, rows, columns). With
// a_turned, what lies in memory is (batch, depth, rows), with b_turned (batch, columns, depth).
//
// A block makes TILE x TILE elements of one product, each thread PATCH x PATCH of them, from panels of STEP terms
// in shared memory. Terms are added in their order, whatever the sizes, in parts of SUMMED.
#include "common.cuh"

constexpr int TILE = 32;
constexpr int STEP = 16;
constexpr int PATCH = 2;
constexpr int SIDE = TILE / PATCH;  // threads along each axis of a block

// One more element a row: a panel is written along one axis and read along the other.
typedef ACC Panel[STEP][TILE + 1];

// Elements (line, term) of a panel: TILE lines from `first`, STEP terms from `start`; zero outside of the matrix.
__device__ __forceinline__ void fill(
    Panel& panel, const T* matrix, const int first, const int lines, const int start, const int terms,
    const bool lines_together) {
    for (int item = threadIdx.x; item < TILE * STEP; item += SIDE * SIDE) {
        // Neighbouring threads read neighbouring elements.
        const int line = lines_together ? item % TILE : item / STEP;
        const int term = lines_together ? item / TILE : item % STEP;
        const bool inside = first + line < lines && start + term < terms;
        const INDEX place = lines_together ? static_cast<INDEX>(start + term) * lines + (first + line)
                                           : static_cast<INDEX>(first + line) * terms + (start + term);
        panel[term][line] = inside ? load(matrix + place) : ACC(0);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) matmul(
    const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ c, const int a_turned, const int b_turned,
    const int rows, const int columns, const int depth) {
    __shared__ Panel left, right;
    const int across = (columns + TILE - 1) / TILE, down = (rows + TILE - 1) / TILE;
    INDEX rest = static_cast<INDEX>(blockIdx.x);
    const int column = static_cast<int>(take(rest, across)) * TILE, row = static_cast<int>(take(rest, down)) * TILE;
    a += rest * rows * depth;
    b += rest * depth * columns;
    c += rest * rows * columns;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    ACC sums[PATCH][PATCH] = {}, part[PATCH][PATCH] = {};
    for (int start = 0; start < depth; start += STEP) {
        fill(left, a, row, rows, start, depth, a_turned != 0);
        fill(right, b, column, columns, start, depth, b_turned == 0);
        __syncthreads();
#pragma unroll 4
        for (int term = 0; term < STEP; ++term) {
#pragma unroll
            for (int i = 0; i < PATCH; ++i) {
#pragma unroll
                for (int j = 0; j < PATCH; ++j)
                    part[i][j] += left[term][y + i * SIDE] * right[term][x + j * SIDE];
            }
        }
        if ((start + STEP) % SUMMED == 0 || start + STEP >= depth) {
#pragma unroll
            for (int i = 0; i < PATCH; ++i) {
#pragma unroll
                for (int j = 0; j < PATCH; ++j) {
                    sums[i][j] += part[i][j];
                    part[i][j] = 0;
                }
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < PATCH; ++i) {
        for (int j = 0; j < PATCH; ++j) {
            const int to = row + y + i * SIDE, at = column + x + j * SIDE;
            if (to < rows && at < columns) store(c + static_cast<INDEX>(to) * columns + at, sums[i][j]);
        }
    }
}
