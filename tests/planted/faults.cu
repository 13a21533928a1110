// One fault a kernel, each under the name of the fault; test_ptx.py says where and how each must be reported.
// Further down, kernels that look as if they had a fault, and have none.
#include "common.cuh"

#define HERE static_cast<int>(threadIdx.x)

// ---- bounds and alignment ------------------------------------------------------------------------------------------
extern "C" __global__ void read_past_the_end(const float* x, float* y) { y[HERE] = x[HERE + 1]; }
extern "C" __global__ void read_before_the_beginning(const float* x, float* y) { y[HERE] = x[HERE - 1]; }
extern "C" __global__ void write_past_the_end(const float* x, float* y) { y[HERE + 1] = x[HERE]; }
extern "C" __global__ void read_far_away(const float* x, float* y, long long far) {
    y[HERE] = HERE == 3 ? x[far] : 0.0f;
}
extern "C" __global__ void atomic_past_the_end(const float* x, float* y) { atomicAdd(y + HERE + 1, x[HERE]); }
extern "C" __global__ void array_that_is_not_given(const float* x, float* y) { y[HERE] = x[HERE]; }
extern "C" __global__ void vector_at_an_odd_element(const float* x, float* y) {
    const float4 four = *reinterpret_cast<const float4*>(x + 1 + 4 * HERE);
    y[HERE] = four.x + four.w;
}
extern "C" __global__ void vectors(const float* x, float* y) {  // a fault where x is a view from an odd element
    const float4 four = reinterpret_cast<const float4*>(x)[HERE];
    y[HERE] = four.x + four.w;
}
extern "C" __global__ void past_a_shared_array_into_the_next(const float* x, float* y) {
    __shared__ float first[32], second[32];
    second[HERE] = x[HERE];
    __syncthreads();
    first[HERE + 1] = x[HERE];
    __syncthreads();
    y[HERE] = first[HERE | 1] + second[HERE];
}
extern "C" __global__ void past_dynamic_shared_memory(const float* x, float* y) {
    extern __shared__ float tile[];
    tile[HERE] = x[HERE];
    y[HERE] = tile[HERE];
}
extern "C" __global__ void shared_vector_at_an_odd_element(const float* x, float* y) {
    __shared__ __align__(16) float tile[132];
    for (int i = 0; i < 4; ++i) tile[4 * HERE + i] = x[HERE];
    if (HERE < 4) tile[128 + HERE] = 0.0f;
    __syncthreads();
    const float4 four = *reinterpret_cast<const float4*>(tile + 1 + 4 * HERE);
    y[HERE] = four.x + four.y + four.z + four.w;
}

// ---- const and non-coherent loads ----------------------------------------------------------------------------------
extern "C" __global__ void write_to_const(const float* x, float* y) {
    if (HERE == 5) const_cast<float*>(x)[7] = 1.0f;
    y[HERE] = 0.0f;
}
extern "C" __global__ void copy(const float* __restrict__ x, float* __restrict__ y) {  // a fault where x is y
    y[HERE] = x[HERE];
}
extern "C" __global__ void constant_load_after_a_write(const float* x, float* y) {
    y[HERE] = x[HERE];
    __syncthreads();
    y[HERE + 32] = __ldg(y + 31 - HERE);
}

extern "C" __global__ void write_after_a_constant_load_and_a_barrier(const float* x, float* y) {
    const float before = __ldg(y + 31 - HERE);
    __syncthreads();
    const float again = y[HERE];
    y[HERE] = before + again + x[HERE];
}

// ---- races ---------------------------------------------------------------------------------------------------------
extern "C" __global__ void no_barrier_before_reading(const float* x, float* y) {
    __shared__ float tile[64];
    tile[HERE] = x[HERE];
    y[HERE] = tile[63 - HERE];
}
extern "C" __global__ void no_barrier_before_writing_again(const float* x, float* y) {
    __shared__ float tile[64];
    tile[HERE] = x[HERE];
    __syncthreads();
    const float value = tile[63 - HERE];
    tile[HERE] = value + 1;
    y[HERE] = tile[HERE];
}
extern "C" __global__ void no_barrier_at_the_end_of_a_loop(const float* x, float* y) {
    __shared__ float tile[64];
    tile[HERE] = x[HERE];
    __syncthreads();
    for (int round = 0; round < 2; ++round) {
        const float next = tile[(HERE + 1) % 64];
        __syncthreads();
        tile[HERE] = next;
    }
    y[HERE] = tile[HERE];
}
extern "C" __global__ void no_barrier_of_the_warp(const float* x, float* y) {
    __shared__ float tile[32];
    tile[HERE] = x[HERE];
    y[HERE] = tile[HERE ^ 1];
}
extern "C" __global__ void two_threads_write_one_element(const float* x, float* y) { y[HERE / 2] = x[HERE]; }
extern "C" __global__ void two_blocks_write_one_element(const float* x, float* y) { y[HERE] = x[HERE]; }
extern "C" __global__ void two_blocks_add_without_an_atomic(const float* x, float* y) { y[HERE] += x[HERE]; }
extern "C" __global__ void a_read_beside_atomics(const float* x, float* y) {
    atomicAdd(y, x[HERE]);
    y[1 + HERE] = y[0];
}
extern "C" __global__ void a_block_reads_what_another_writes(const float* x, float* y) {
    y[32 * blockIdx.x + HERE] = x[HERE];
    if (blockIdx.x == 1) y[64 + HERE] = y[HERE];
}

// ---- shared memory that nobody has written -------------------------------------------------------------------------
extern "C" __global__ void one_element_is_not_written(const float* x, float* y) {
    __shared__ float tile[64];
    if (HERE != 9) tile[HERE] = x[HERE];
    __syncthreads();
    y[HERE] = tile[63 - HERE];
}
extern "C" __global__ void only_the_first_block_writes(const float* x, float* y) {
    __shared__ float tile[32];
    if (blockIdx.x == 0) tile[HERE] = x[HERE];
    __syncthreads();
    y[32 * blockIdx.x + HERE] = tile[HERE];
}

// ---- warps ---------------------------------------------------------------------------------------------------------
extern "C" __global__ void shuffle_in_half_a_warp(const float* x, float* y) {
    float value = x[HERE];
    if (HERE < 16) value += __shfl_xor_sync(ALL_LANES, value, 1);
    y[HERE] = value;
}
extern "C" __global__ void shuffle_after_some_returned(const float* x, float* y) {
    if (HERE == 31) return;
    y[HERE] = __shfl_xor_sync(ALL_LANES, x[HERE], 16);
}
extern "C" __global__ void shuffles_in_both_branches(const float* x, float* y) {
    float value = x[HERE];
    if (value < 16) value = __shfl_down_sync(ALL_LANES, value + 1, 1);
    else value = __shfl_up_sync(ALL_LANES, value * 3, 2);
    y[HERE] = value;
}
extern "C" __global__ void shuffle_from_a_lane_outside_its_mask(const float* x, float* y) {
    if (HERE < 16) y[HERE] = __shfl_sync(0xffffu, x[HERE], 20);
}
extern "C" __global__ void vote_in_half_a_warp(const float* x, float* y) {
    y[HERE] = 0;
    if (x[HERE] < 8) y[HERE] = __any_sync(ALL_LANES, x[HERE] > 3);
}
extern "C" __global__ void barrier_in_half_a_warp(const float* x, float* y) {
    y[HERE] = x[HERE];
    if (HERE < 16) __shfl_sync(ALL_LANES, 1, 0);
    else __syncthreads();
}

// ---- division ------------------------------------------------------------------------------------------------------
extern "C" __global__ void division_by_zero(const int* x, int* y) { y[HERE] = 100 / x[HERE]; }
extern "C" __global__ void remainder_by_zero(const int* x, int* y) { y[HERE] = 100 % x[HERE]; }

// ---- limits of a launch --------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(32) larger_than_its_bounds(const float* x, float* y) { y[HERE] = x[HERE]; }
extern "C" __global__ void too_much_shared_memory(const float* x, float* y) {
    __shared__ float tile[32];
    extern __shared__ float more[];
    tile[HERE] = more[HERE] = x[HERE];
    y[HERE] = tile[HERE] + more[HERE];
}

// ---- sound ---------------------------------------------------------------------------------------------------------
extern "C" __global__ void sound_barriers(const float* x, float* y) {
    __shared__ float tile[64];
    for (int round = 0; round < 3; ++round) {
        tile[HERE] = x[HERE] + round;
        __syncthreads();
        y[64 * blockIdx.x + HERE] = tile[63 - HERE];
        __syncthreads();
    }
}
extern "C" __global__ void sound_warp_barriers(const float* x, float* y) {
    __shared__ float tile[64];
    tile[HERE] = x[HERE];
    for (int step = 16; step > 0; step /= 2) {
        __syncwarp();
        const float other = tile[HERE ^ step];
        __syncwarp();
        tile[HERE] += other;
    }
    y[64 * blockIdx.x + HERE] = tile[HERE];
}
extern "C" __global__ void sound_atomics(const float* x, float* y) {
    atomicAdd(y, x[HERE]);
    atomicAdd(y + HERE % 2, 1.0f);
}
extern "C" __global__ void sound_reads_of_own_writes(const float* x, float* y) {
    float* mine = y + 64 * blockIdx.x + HERE;
    *mine = x[HERE];
    *mine += x[63 - HERE];
}
extern "C" __global__ void sound_whole_warps_return(const float* x, float* y) {
    if (HERE >= 32) return;
    y[64 * blockIdx.x + HERE] = __shfl_xor_sync(ALL_LANES, x[HERE], 16);
}
extern "C" __global__ void sound_masks(const float* x, float* y) {
    y[64 * blockIdx.x + HERE] = 0;
    if (HERE % 32 < 8) y[64 * blockIdx.x + HERE] = __shfl_xor_sync(0xffu, x[HERE], 4);
}
extern "C" __global__ void sound_last_warp_that_is_not_full(const float* x, float* y) {
    y[64 * blockIdx.x + HERE] = __shfl_down_sync(ALL_LANES, x[HERE], 1, 8);
}
