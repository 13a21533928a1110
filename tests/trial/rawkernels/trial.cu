// trial: the channels of each pixel times a number. Forward and its gradients.
//
//   x (N,C,H,W)  gate (N,H,W)  y (N,C,H,W) = sign * gate[n,p] * x[n,c,p]
#include "common.cuh"

extern "C" __global__ void trial_multiply(const T* __restrict__ x, const T* __restrict__ gate, T* __restrict__ y,
                                          INDEX items, int channels, int positions, int sign) {
    const INDEX i = thread_index();
    if (i >= items) return;
    INDEX rest = i;
    const INDEX p = take(rest, positions);
    take(rest, channels);
    store(y + i, sign * load(x + i) * load(gate + rest * positions + p));
}

// A thread sums over the channels of one pixel.
extern "C" __global__ void trial_grad_gate(const T* __restrict__ x, const T* __restrict__ grad,
                                           T* __restrict__ result, INDEX items, int channels, int positions, int sign) {
    const INDEX i = thread_index();
    if (i >= items) return;
    INDEX n = i;
    const INDEX p = take(n, positions);
    ACC sum = 0;
    for (int c = 0; c < channels; ++c) {
        const INDEX at = (n * channels + c) * positions + p;
        sum += load(x + at) * load(grad + at);
    }
    store(result + i, sign * sum);
}
