#pragma once
// Sums over the lanes of a warp, and over the slots in which parts of a sum wait.

// Leave in value[0] of lane L the sum of value[L] over the 32 lanes. Each round halves what a lane keeps and sends the
// other half away: 31 shuffles, where 32 separate sums take 160.
template <int HALF = WARP / 2>
__device__ __forceinline__ void lane_totals(ACC (&value)[WARP]) {
    const bool upper = (threadIdx.x & HALF) != 0;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const ACC sent = upper ? value[i] : value[i + HALF];
        const ACC kept = upper ? value[i + HALF] : value[i];
        value[i] = kept + __shfl_xor_sync(ALL_LANES, sent, HALF);
    }
    if constexpr (HALF > 1) lane_totals<HALF / 2>(value);
}

// The second pass of a split sum: its slots in order. A thread makes one total.
__device__ __forceinline__ void sum_slots(const ACC* partial, ACC* total, INDEX count, int slots) {
    const INDEX i = thread_index();
    if (i >= count) return;
    ACC sum = 0;
    for (int slot = 0; slot < slots; ++slot) sum += partial[slot * count + i];
    total[i] = sum;
}
