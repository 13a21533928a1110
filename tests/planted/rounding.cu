// Conversions between the element type and float, one element a thread.
#include "common.cuh"

extern "C" __global__ void widen(const T* __restrict__ source, float* __restrict__ target, int count) {
    const int i = thread_index();
    if (i < count) target[i] = load(source + i);
}

extern "C" __global__ void narrow(const float* __restrict__ source, T* __restrict__ target, int count) {
    const int i = thread_index();
    if (i < count) store(target + i, source[i]);
}
